"""Fused decoder layers against the model's own code, and when they are used."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from engine_models import SIZES, adapted, batch_of, clean, llama, plain_grads, qwen2, relative

from fudlr_ext import Engine, decoder, decoder_layer, label_logits, label_loss

FACE = (label_logits, label_loss)


@pytest.fixture
def used(monkeypatch):
    """The shapes of the inputs of all fused layers."""
    shapes = []
    start = decoder_layer.Pass.__init__

    def noted(self, layer, packed, x):
        shapes.append((x.shape[0], packed.wanted))
        start(self, layer, packed, x)

    monkeypatch.setattr(decoder_layer.Pass, "__init__", noted)
    return shapes


# The model's own eager attention is NaN in float64 where padding comes first.
@pytest.mark.parametrize(
    ("attention", "side"), [("sdpa", "right"), ("sdpa", "left"), ("eager", "right")]
)
@pytest.mark.parametrize("base", [llama, qwen2])
def test_equals_the_model_in_float64(used, base, attention, side):
    torch.manual_seed(0)
    if attention == "eager":  # whose softmax is float32: not the same, and so not used
        model = adapted(clean(base(attn_implementation="eager")), torch.float64)
    else:
        model = adapted(clean(base(attn_implementation="sdpa")), torch.float64)
    engine, batch = Engine(model), batch_of()
    if side == "left":
        batch = {key: value.flip(1) for key, value in batch.items()}
        batch["labels"].fill_(-100)
        batch["labels"][:, -2:] = batch["input_ids"][:, -2:]
    got = engine.sample_grads(*FACE, batch)
    assert relative(got, plain_grads(model, batch)) <= (1e-10 if attention == "sdpa" else 1e-5)
    assert bool([s for s in used if s[0] > 5]) == (attention == "sdpa")


@pytest.mark.parametrize("family", ["Gemma2", "Gemma3"])
def test_other_layers_of_the_family_are_named(used, family):
    torch.manual_seed(0)
    config = {"Gemma2": transformers.Gemma2Config, "Gemma3": transformers.Gemma3TextConfig}[family]
    sizes = {**SIZES, "head_dim": 8, "attention_dropout": 0.0, "query_pre_attn_scalar": 8}
    base = getattr(transformers, f"{family}ForCausalLM")(config(**sizes))
    model, batch = adapted(base, lora_dropout=0.0), batch_of()
    engine = Engine(model)
    got = engine.sample_grads(*FACE, batch)
    assert not used
    assert "it has norms after attention and MLP" in str(engine.report())
    assert relative(got, plain_grads(model, batch)) <= 1e-5


@pytest.mark.parametrize("window_from", [0, 2, 3])
def test_stacks_with_windows_run_their_own_code(used, window_from):
    torch.manual_seed(0)
    windows = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": window_from}
    model = adapted(clean(qwen2(attn_implementation="sdpa", num_hidden_layers=3, **windows)),
                    torch.float64)  # fmt: skip
    batch = batch_of()
    got = Engine(model).sample_grads(*FACE, batch)
    assert len([shape for shape in used if shape[0] > 5]) == (3 if window_from == 3 else 0)
    assert relative(got, plain_grads(model, batch)) <= 1e-10


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_layers_on_other_devices_are_left_alone(device):
    layout = SimpleNamespace(device=torch.device(device), dtype=torch.float32, layers=[])
    stack = decoder.find(llama(), layout)
    assert (stack.layers, stack.why_not) == ([], f"the library has no kernels for {device}")


def test_padding_is_left_out_and_the_last_layer_cut(used):
    torch.manual_seed(0)
    engine, batch = Engine(adapted(llama())), batch_of()
    engine.sample_grads(*FACE, batch)
    first, last = used[-2:]
    assert first == (int(batch["attention_mask"].sum()), None)
    assert len(last[1]) == int((batch["labels"] != -100).sum())


def test_another_mask_is_left_to_the_model(used):
    torch.manual_seed(0)
    model = adapted(llama(attn_implementation="sdpa"))
    engine, batch = Engine(model), batch_of()
    t = batch["input_ids"].shape[1]
    window = torch.ones(t, t, dtype=torch.bool).tril().triu(-2).expand(1, 1, t, t)

    def forward(model, batch):
        n = len(batch["input_ids"])
        given = {**batch, "attention_mask": window.expand(n, 1, t, t)}
        return label_logits(model, given)

    got = engine.sample_grads(forward, label_loss, batch)
    assert relative(got, plain_grads(model, batch, forward=forward)) <= 1e-5
    assert all(positions == 5 for positions, _ in used)
