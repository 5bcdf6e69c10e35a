"""Adapters on embeddings, heads and biases: LoRA on them, and single trained tokens.

The right value is autograd's, one sample a batch, over the adapter's own parameters.
"""

import pytest
import torch
from engine_models import (
    adapted,
    batch_of,
    clean,
    fused,
    llama,
    part,
    qwen2,
    relative,
    sample,
)
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from fudlr_ext import Engine, UnsupportedLayerError, label_logits, label_loss
from fudlr_ext.reducers import Factors, Rows

FACE = (label_logits, label_loss)
PARTS = ("lora_", "trainable_tokens_delta")
KINDS = {
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["v_proj", "lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [7, 3, 40, 1]},
    "biases of B": {"target_modules": ["q_proj", "v_proj"], "lora_bias": True},
    "ranks": {"rank_pattern": {"q_proj": 7}, "alpha_pattern": {"v_proj": 3}, "use_rslora": True},
}


def model_of(kind, tied=False, base=None, **changes):
    torch.manual_seed(0)
    sizes = {"attention_dropout": 0.0, "tie_word_embeddings": tied, "pad_token_id": 1, **changes}
    base = clean((qwen2 if kind == "biases of B" else llama)(**sizes)) if base is None else base
    model = adapted(base, torch.float64, lora_dropout=0.0, **KINDS[kind]).eval()
    for name, p in model.named_parameters():
        if any(part in name for part in PARTS):
            nn.init.normal_(p, std=0.2)
    return model


def plain(engine, batch, second=None):
    """Gradients of single samples; or the mean loss's Hessian product with a vector."""
    own = engine.parameters()
    for p in own:
        p.requires_grad_(True)

    def flat(value, **options):
        found = torch.autograd.grad(
            value, own, allow_unused=True, materialize_grads=True, **options
        )
        return torch.cat([g.flatten() for g in found])

    if second is None:
        losses = (label_loss(label_logits(engine.model, o), o) for o in map_samples(batch))
        return torch.stack([flat(loss.sum()) for loss in losses])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = label_loss(label_logits(engine.model, batch), batch).mean()
    return flat(flat(loss, create_graph=True) @ second)


def map_samples(batch):
    return (sample(batch, i) for i in range(len(batch["input_ids"])))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind, tied):
    engine, batch = Engine(model_of(kind, tied), check=True), batch_of()
    batch["input_ids"][0, 2] = 1  # padding's token within a sample
    expected = plain(engine, batch)
    vectors = torch.randn(2, engine.d, dtype=torch.float64)
    assert relative(engine.sample_grads(*FACE, batch), expected) <= 1e-12
    assert fused(engine) == (kind != "biases of B")
    assert relative(engine.sample_dots(*FACE, batch, vectors), expected @ vectors.T) <= 1e-12
    product = engine.fisher_vp(*FACE, batch, vectors)
    assert relative(product, (expected @ vectors.T).T @ expected / 5) <= 1e-12
    second = plain(engine, batch, vectors[0])
    assert relative(engine.hvp(*FACE, batch, vectors[:1])[0], second) <= 1e-9
    deferred = engine.deferred_vjp(label_logits, batch)
    cotangents = torch.autograd.functional.vjp(
        lambda out: label_loss(out, batch).sum(), deferred.outputs[0]
    )[1]
    assert relative(deferred.vjp(cotangents[None])[0], expected.sum(0)) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_sketches_and_factors(kind):
    engine, batch = Engine(model_of(kind, tied=True)), batch_of()
    rows = engine.unflatten(engine.sample_grads(*FACE, batch))
    generator = torch.Generator().manual_seed(1)
    for narrow in (0, 1):
        projection, expected = {}, []
        for name, gradients in rows.items():
            side = torch.randn(
                2, gradients.shape[narrow + 1], dtype=torch.float64, generator=generator
            )
            projection[name] = (side, None) if narrow == 0 else (None, side)
            wide = side @ gradients if narrow == 0 else gradients @ side.T
            expected.append(wide.flatten(1))
        got = engine.sample_sketch(*FACE, batch, projection)
        assert relative(got, torch.cat(expected, 1)) <= 1e-12
    factors = Factors()
    engine.reduce(*FACE, batch, [factors])
    for name, shape in engine.shapes.items():
        assert factors.left[name].shape == (shape[0],) * 2
        assert factors.right[name].shape == (shape[1],) * 2
        assert factors.left[name].any()
        assert factors.right[name].any()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_somebody_elses_training(kind):
    """A backward pass of the caller's own gives the same factors."""
    engine, batch = Engine(model_of(kind, tied=True)), batch_of()
    expected = plain(engine, batch)
    hook, rows = engine.backward_hook(), Rows()
    rows.start(engine._layout, 5)

    class Taker:
        def factors(self, *given):
            rows.add_all(*given)

    hook.open(5, Taker())
    label_loss(label_logits(engine.model, batch), batch).sum().backward()
    hook.close()
    hook.remove()
    assert relative(rows.result(), expected) <= 1e-12
    assert relative(hook.total(), expected.sum(0)) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_in_and_out(kind, tmp_path):
    model = model_of(kind, tied=True)
    engine = Engine(model)
    vector = torch.randn(engine.d, dtype=torch.float64)
    engine.load(vector)
    assert torch.equal(engine.theta(), vector)
    assert torch.equal(engine.flatten(model), vector)
    from peft import get_peft_model_state_dict

    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert torch.equal(engine.flatten(saved), vector)
    assert sum(p.numel() for p in engine.parameters()) == engine.d


def test_embeddings_that_are_scaled():
    """Gemma multiplies its embeddings by the root of their width."""
    sizes = {"vocab_size": 41, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 1}
    for kind in ("embedding", "tokens"):
        base = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, **heads, attn_implementation="eager"))
        engine, batch = Engine(model_of(kind, base=clean(base)), check=True), batch_of()
        got = engine.sample_grads(*FACE, batch)
        assert relative(got, plain(engine, batch)) <= 1e-6  # softmax in float32


def test_the_type_that_trains_tokens_alone():
    base = llama(attention_dropout=0.0)
    model = get_peft_model(clean(base), TrainableTokensConfig(token_indices=[2, 9])).double()
    engine, batch = Engine(model.eval()), batch_of()
    batch["input_ids"][:, 1], batch["input_ids"][:, 3] = 2, 9
    assert engine.d == 2 * 32
    assert relative(engine.sample_grads(*FACE, batch), plain(engine, batch)) <= 1e-12


@pytest.mark.parametrize("kind", ["embedding", "tokens"])
def test_batches_without_a_trained_token(kind):
    engine, batch = Engine(model_of(kind)), batch_of()
    ids = batch["input_ids"]
    batch["input_ids"] = torch.where((ids == 7) | (ids == 3) | (ids == 40) | (ids == 1), 5, ids)
    assert relative(engine.sample_grads(*FACE, batch), plain(engine, batch)) <= 1e-12


@pytest.mark.parametrize("kind", ["embedding", "tokens"])
def test_hooks_on_embeddings(kind):
    """On the layer and its base: the factors are what comes back to its output."""
    model, batch = model_of(kind), batch_of()
    engine = Engine(model)
    engine.sample_grads(*FACE, batch)
    table = model.get_input_embeddings()
    table.register_forward_hook(lambda m, a, out: out * 1.5)
    assert relative(engine.sample_grads(*FACE, batch), plain(engine, batch)) <= 1e-12
    own = part(model, "token_adapter") if kind == "tokens" else table
    before = type(own).forward
    type(own).forward = lambda self, *a, **k: before(self, *a, **k) * 1.1
    try:
        with pytest.raises(UnsupportedLayerError, match="other numbers than base and adapter"):
            engine.sample_grads(*FACE, batch)
    finally:
        type(own).forward = before
    assert relative(engine.sample_grads(*FACE, batch), plain(engine, batch)) <= 1e-12


@pytest.mark.parametrize("option", ["max_norm", "scale_grad_by_freq", "sparse"])
def test_embeddings_whose_gradients_are_no_sums(option):
    model, batch = model_of("embedding"), batch_of()
    value = 1.0 if option == "max_norm" else True
    setattr(part(model, "embed_tokens").base_layer, option, value)
    with pytest.raises(UnsupportedLayerError, match=f"its base has {option}"):
        Engine(model).sample_grads(*FACE, batch)


def test_tied_adapters_are_refused():
    base = llama(tie_word_embeddings=True)
    config = LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True)
    with pytest.raises(UnsupportedLayerError, match="is shared with"):
        Engine(get_peft_model(base, config))


def test_a_token_that_is_read_by_itself():
    """Code that reads the embedding's weight, and not the layer, is noticed."""
    model, batch = model_of("tokens"), batch_of()
    table = model.get_input_embeddings()

    def penalised(outputs, batch):
        return label_loss(outputs, batch) + table.weight.square().mean()

    with pytest.raises(ValueError, match="uses a LoRA matrix by itself"):
        Engine(model).sample_grads(label_logits, penalised, batch)


def test_moments_of_a_large_vocabulary_are_refused(monkeypatch):
    from fudlr_ext import reducers

    monkeypatch.setattr(reducers, "LARGEST_MOMENT", 40)
    engine = Engine(model_of("embedding"))
    with pytest.raises(ValueError, match=r"lora_embedding_A is \[4, 41\]"):
        engine.reduce(*FACE, batch_of(), [Factors()])
