"""Curvature products through the fused layers against those by automatic differentiation."""

from unittest import mock

import pytest
import torch
from engine_models import adapted, batch_of, clean, llama, qwen2, relative

from fudlr_ext import Engine, curvature, decoder, decoder_jvp, label_logits, label_loss, passes

FACE = {"forward": label_logits, "loss": label_loss}
PRODUCTS = ("hvp", "ggn_vp", "ggn_form")


@pytest.fixture
def gone(monkeypatch):
    """How many vectors went through each fused layer."""
    counts = []
    start = decoder_jvp.LayerTangents.__init__

    def noted(self, *given):
        start(self, *given)
        counts.append(self.k)

    monkeypatch.setattr(decoder_jvp.LayerTangents, "__init__", noted)
    return counts


def engine_of(base=llama, **changes):
    torch.manual_seed(0)
    model = clean(base(attn_implementation="sdpa", num_hidden_layers=3))
    return Engine(adapted(model, torch.float64, **changes))


def both(product, engine, vectors, **face):
    given = {**FACE, "batch": batch_of(), **face}
    fused = getattr(engine, product)(vectors=vectors, **given)
    with mock.patch.object(passes, "find", return_value=decoder.Stack()):
        plain = getattr(engine, product)(vectors=vectors, **given)
    return fused, plain


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    ("base", "targets"),
    [
        (llama, "all-linear"),
        (qwen2, "all-linear"),
        (llama, ["down_proj"]),  # its layer's attention has no tangent
        (qwen2, ["k_proj", "o_proj", "gate_proj"]),
    ],
)
def test_equals_automatic_differentiation(gone, product, base, targets):
    engine = engine_of(base, target_modules=targets)
    vectors = torch.randn(5, engine.d, dtype=torch.float64)
    fused, plain = both(product, engine, vectors)
    assert gone == [5, 5, 5]
    assert relative(fused, plain) <= 1e-12


@pytest.mark.parametrize("product", PRODUCTS)
def test_layers_below_the_adapter_are_passed_over(gone, product):
    engine = engine_of(layers_to_transform=[1, 2], target_modules=["q_proj", "up_proj"])
    fused, plain = both(product, engine, torch.randn(2, engine.d, dtype=torch.float64))
    assert gone == [2, 2]
    assert relative(fused, plain) <= 1e-12


def test_vectors_go_in_groups_where_memory_asks_for_it(gone, monkeypatch):
    engine = engine_of()
    vectors = torch.randn(3, engine.d, dtype=torch.float64)
    monkeypatch.setattr(curvature, "DIRECTION_BYTES", 1)
    fused, plain = both("hvp", engine, vectors)
    assert gone == [1] * 9
    assert relative(fused, plain) <= 1e-12


@pytest.mark.parametrize("product", PRODUCTS)
def test_samples_go_in_parts_where_the_cache_asks_for_it(gone, monkeypatch, product):
    engine = engine_of()
    vectors = torch.randn(3, engine.d, dtype=torch.float64)
    monkeypatch.setattr(decoder_jvp, "PART_BYTES", 1)
    fused, plain = both(product, engine, vectors)
    assert gone == [3] * 3 * len(batch_of()["input_ids"])
    assert relative(fused, plain) <= 1e-12


@pytest.mark.parametrize("product", PRODUCTS)
def test_every_position_may_be_used(gone, product):
    """Without `label_logits` the last layer gives all positions."""
    engine = engine_of()
    batch = {"input_ids": batch_of()["input_ids"]}

    def forward(model, batch):
        return model(**batch, use_cache=False).logits

    def loss(logits, batch):
        return logits.logsumexp(-1).square().mean(1)

    face = {"forward": forward, "loss": loss, "batch": batch}
    fused, plain = both(product, engine, torch.randn(2, engine.d, dtype=torch.float64), **face)
    assert gone == [2, 2, 2]
    assert relative(fused, plain) <= 1e-12


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_hidden_state_used_by_itself_is_left_to_the_model(gone, product):
    engine = engine_of()
    batch = {"input_ids": batch_of()["input_ids"]}

    def forward(model, batch):
        out = model(**batch, use_cache=False, output_hidden_states=True)
        n = len(batch["input_ids"])
        within = out.hidden_states[2].reshape(n, -1)
        return out.logits.reshape(n, -1), within

    def loss(outputs, batch):
        return outputs[0].square().mean(1) + outputs[1].square().mean(1)

    face = {"forward": forward, "loss": loss, "batch": batch}
    fused, plain = both(product, engine, torch.randn(2, engine.d, dtype=torch.float64), **face)
    assert not gone
    assert relative(fused, plain) <= 1e-12


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_model_some_of_whose_layers_run_by_themselves_is_left_to_itself(gone, product):
    windows = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}

    def windowed(**changes):
        return qwen2(**changes, **windows)

    engine = engine_of(windowed)
    fused, plain = both(product, engine, torch.randn(2, engine.d, dtype=torch.float64))
    assert not gone
    assert relative(fused, plain) <= 1e-12
