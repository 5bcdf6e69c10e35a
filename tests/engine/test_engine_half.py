"""Bases in 16 bits: which type the fused layers compute in, and that they err as PyTorch does."""

import copy
from unittest.mock import patch

import pytest
import torch
from engine_models import (
    adapted,
    batch_of,
    gemma,
    llama,
    lora_parameters,
    plain_grads,
    plain_hvp,
    qwen2,
    qwen3,
    relative,
)
from torch import nn

from fudlr_ext import Engine, EngineError, decoder, label_logits, label_loss, passes, probe
from fudlr_ext.decoder_layer import Joint, Part
from fudlr_ext.layers import Layout
from fudlr_ext.reducers import Sums

pytestmark = pytest.mark.numerics
FACE = (label_logits, label_loss)


def in_16_bits(base=llama, dtype=torch.bfloat16, adapter=torch.float32, **changes):
    model = adapted(base(attention_dropout=0.0, **changes), dtype, lora_dropout=0.0).eval()
    for p in lora_parameters(model):
        p.data = p.data.to(adapter)
    return model


def native(answer):
    """As on a CPU that has instructions for bfloat16, or has none."""
    return patch.object(probe, "native_bfloat16", return_value=answer)


WAYS = {
    "in bfloat16": lambda: native(True),
    "in float32": lambda: native(False),
    "layer by layer": lambda: patch.object(passes, "find", return_value=decoder.Stack()),
}


@pytest.mark.parametrize(
    ("base", "adapter", "way"),
    [
        (llama, torch.float32, "in bfloat16"),
        (llama, torch.bfloat16, "in bfloat16"),
        (qwen2, torch.float32, "in bfloat16"),
        (qwen3, torch.bfloat16, "in bfloat16"),
        (gemma, torch.float32, "in bfloat16"),
        (llama, torch.bfloat16, "in float32"),
        (qwen3, torch.float32, "in float32"),
        (gemma, torch.float32, "in float32"),
        (llama, torch.bfloat16, "layer by layer"),
        (llama, torch.float32, "layer by layer"),
    ],
)
def test_gradients_err_as_plain_ones_do(base, adapter, way):
    """At most twice as much, beside float64.

    One batch's error is a draw of roundings, which another processor draws again; their root mean
    square over several models, shapes and samples is not.
    """
    ours = plain = 0.0
    for seed in range(4):
        torch.manual_seed(seed)
        wide = {"hidden_size": 32 * (1 + seed % 2), "num_hidden_layers": 2 + seed // 3}
        model = in_16_bits(base, adapter=adapter, **wide)
        batch = batch_of(n=5, t=7 + 5 * seed, seed=seed)
        truth = plain_grads(copy.deepcopy(model).double(), batch)
        engine = Engine(model)
        with WAYS[way]():
            got = engine.sample_grads(*FACE, batch)
        assert got.dtype == torch.float32
        said = str(engine.report())
        assert way in said if engine.report().fused_layers else way == "layer by layer", said
        ours += relative(got, truth) ** 2
        plain += relative(plain_grads(model, batch), truth) ** 2
    assert ours**0.5 <= 2 * plain**0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_the_cpu_cannot_multiply_is_computed_in_float32(dtype):
    torch.manual_seed(0)
    model = in_16_bits(dtype=dtype)
    engine, batch = Engine(model), batch_of()
    with native(dtype == torch.float16):
        got = engine.sample_grads(*FACE, batch)
    report = engine.report()
    assert (report.fused_layers, report.dtype) == (2, "float32")
    truth = plain_grads(copy.deepcopy(model).double(), batch)
    assert relative(got, truth) <= 2 * relative(plain_grads(model, batch), truth)


def test_what_torch_may_use_decides(monkeypatch):
    for has, limit, answer in (
        (True, "", True),
        (True, "AVX512_CORE_BF16", True),
        (True, "avx512_core", False),
        (True, "AVX2", False),
        (False, "", False),
    ):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert probe.native_bfloat16() == answer


def test_a_users_own_forward_is_served():
    """With a padding mask, outputs at all positions, and use_cache as the model has it."""
    torch.manual_seed(0)
    model, batch = in_16_bits(), batch_of()

    def forward(model, batch):
        return model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def loss(logits, batch):
        each = nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none"
        )
        return each.view(len(logits), -1).sum(1)

    engine, way = Engine(model), {"forward": forward, "loss": loss}
    with native(True):
        got = engine.sample_grads(forward, loss, batch)
    assert str(engine.report()) == "first order: 2 of 2 decoder layers fused in bfloat16."
    truth = plain_grads(copy.deepcopy(model).double(), batch, **way)
    assert relative(got, truth) <= 2 * relative(plain_grads(model, batch, **way), truth)


def test_an_engine_follows_weights_that_are_converted():
    torch.manual_seed(0)
    model, batch = in_16_bits(), batch_of()
    engine = Engine(model)
    with native(True):
        said = [(engine.sample_grads(*FACE, batch), engine.report().dtype)[1]]
        model.float()
        said.append((engine.sample_grads(*FACE, batch), engine.report().dtype)[1])
    assert said == ["bfloat16", "float32"]


def test_second_derivatives_are_taken_in_float32():
    torch.manual_seed(0)
    model, batch = in_16_bits(), batch_of()
    engine = Engine(model)
    vector = torch.randn(1, engine.d)
    with native(True):
        got = engine.hvp(*FACE, batch, vector)
    assert engine.report().dtype == "float32"
    truth = plain_hvp(copy.deepcopy(model).double(), batch, vector[0].double(), *FACE)
    plain = plain_hvp(model, batch, vector[0], *FACE)
    assert relative(got, truth) <= relative(plain, truth)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_an_adapter_smaller_than_the_weights_last_place_counts(dtype):
    """Merged in 16 bits it would be rounded away, where what it adds to y is not."""
    torch.manual_seed(0)
    d, ones = 1024, torch.ones(2, 1024, dtype=dtype)
    base = nn.Sequential(nn.Linear(d, 64, bias=True))
    base[0].weight.data = torch.tensor([1.0, -1.0]).repeat(64, d // 2) * 2.0**-5
    model = adapted(base, dtype, target_modules=["0"], r=1, lora_alpha=1, lora_dropout=0.0)
    layer = Layout(model, "default").layers[0]
    layer.weights[0].data.fill_(1.0)
    layer.weights[1].data.fill_(2.0**-14)
    merged = layer.base.weight + layer.b @ layer.a
    assert torch.equal(merged, layer.base.weight) == (dtype == torch.bfloat16)
    joint = Joint([Part(layer.base, layer)], dtype)
    expected = layer.base.bias.double() + 2.0**-4  # without the adapter the bias alone
    assert relative(joint.forward(ones)[:, :64], expected.expand(2, 64)) <= 1e-2
    delta = torch.randn(8, 64).to(dtype)
    e, v = joint.backward(delta)
    assert relative(v[:, 0], delta.double().sum(1) * 2.0**-14) <= 1e-2
    assert relative(e, delta.double() @ (layer.base.weight.double() + 2.0**-14)) <= 1e-2


@pytest.mark.parametrize("way", ["in bfloat16", "layer by layer"])
def test_a_checked_row_may_err_as_rounding_does(way, monkeypatch):
    """A deep model's gradients in bfloat16 are noise of any size; a wrong one is refused still."""
    torch.manual_seed(0)
    model, batch = in_16_bits(), batch_of()
    monkeypatch.setattr(passes, "CHECK_HALF", 1e-9)  # as if this small one were as deep
    monkeypatch.setattr(passes, "CHECK", {})
    with WAYS[way]():
        Engine(model, check=True).sample_grads(*FACE, batch)
        assert not any(module._forward_hooks for module in model.modules())
        monkeypatch.setattr(passes._OneRow, "result", lambda row: Sums.result(row) * 1.2)
        with pytest.raises(EngineError, match="compared with plain autograd"):
            Engine(model, check=True).sample_grads(*FACE, batch)
