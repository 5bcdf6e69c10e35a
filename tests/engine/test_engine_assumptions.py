"""What the fast paths take for granted is proven in every pass, or the model's own code runs.

The right value is always autograd's, one sample a batch, in float64, by the model's own code.
"""

import types
from unittest import mock

import pytest
import torch
from engine_models import (
    adapted,
    batch_of,
    check,
    clean,
    fused,
    gemma,
    llama,
    part,
    plain_grads,
    plain_hvp,
    qwen3,
    relative,
    tiny,
    unpadded,
)
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM

from fudlr_ext import (
    Engine,
    EngineError,
    UnsupportedLayerError,
    decoder,
    label_logits,
    label_loss,
    passes,
)

FACE = (label_logits, label_loss)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_the_plain_case_is_fused():
    engine = check(tiny(), batch_of())
    assert fused(engine)
    assert str(engine.report()) == "first order: 2 of 2 decoder layers fused in float64."
    engine.hvp(*FACE, batch_of(), torch.ones(1, engine.d))
    engine.sample_grads(*FACE, batch_of())
    assert [each.call for each in engine.reports()] == ["hvp", "first order"]
    assert engine.reports()[-1] == engine.report()


@pytest.mark.parametrize("base", [qwen3, gemma])
def test_norms_of_heads_and_gates_by_gelu_are_fused(base):
    engine = check(tiny(base), batch_of())
    assert fused(engine)
    vectors = torch.randn(2, engine.d, dtype=torch.float64)
    got = engine.ggn_vp(*FACE, batch_of(), vectors)
    assert fused(engine)
    with mock.patch.object(passes, "find", return_value=decoder.Stack()):
        plain = engine.ggn_vp(*FACE, batch_of(), vectors)
    assert relative(got, plain) <= 1e-10


# Attention that is not causal.


def not_causal(model, where):
    if where == "config":
        model.config.is_causal = False
    else:
        for module in model.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = False


@pytest.mark.parametrize("where", ["config", "modules"])
def test_attention_that_is_not_causal(where):
    model, batch = tiny(), unpadded()
    engine = Engine(model)
    assert fused(check(model, batch, engine=engine, curved=False))
    not_causal(model, where)
    assert not fused(check(model, batch, engine=engine))


def calling(**options):
    """A forward that calls the model with these options, and returns all logits."""

    def forward(model, batch):
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return model(**inputs, **options).logits

    return forward


def everywhere(logits, batch):
    """A loss of every position, padding included."""
    return logits.logsumexp(-1).square().mean(1)


def test_attention_that_a_call_makes_not_causal():
    forward = calling(is_causal=False, use_cache=False)
    engine = check(tiny(), unpadded(), forward=forward, loss=everywhere)
    assert not fused(engine)
    assert "is_causal" in str(engine.report())


def test_a_model_whose_attention_is_never_causal():
    config = AutoConfig.for_model(
        "eurobert", vocab_size=41, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attn_implementation="sdpa", pad_token_id=0,
    )  # fmt: skip
    model = adapted(clean(AutoModelForMaskedLM.from_config(config)), torch.float64).eval()
    assert not fused(check(model, unpadded(), forward=calling(), loss=everywhere))


# Hidden states between the layers.


def test_hidden_states_of_all_layers():
    model, batch = tiny(num_hidden_layers=3), unpadded()

    def forward(model, batch):
        out = model(input_ids=batch["input_ids"], output_hidden_states=True, use_cache=False)
        return torch.stack(out.hidden_states, 1)

    def loss(states, batch):
        assert states.shape[1:] == (4, 7, 32)
        return states.square().mean((1, 2, 3))

    engine = check(model, batch, forward=forward, loss=loss, curved=False)
    assert not fused(engine)
    assert fused(check(model, batch, engine=engine))  # and fused again afterwards


def test_a_recording_hook_sees_what_the_model_makes():
    model, batch = tiny(), batch_of()
    seen = []
    part(model, "layers.0").register_forward_hook(lambda m, a, out: seen.append(out.shape))
    check(model, batch, curved=False)
    assert set(seen) == {(5, 9, 32), (1, 9, 32)}


@pytest.mark.parametrize("kind", ["between", "kept", "stopped", "tuples"])
def test_loops_of_their_own(kind):
    """Remote code: positions mixed between layers, states kept, layers left out, tuples."""
    model, batch = tiny(num_hidden_layers=3), unpadded()
    inner = model.base_model.model.model
    if kind == "tuples":
        kind_of_layer = type(inner.layers[0])

        class Old(kind_of_layer):
            def forward(self, *args, **kwargs):
                return (kind_of_layer.forward(self, *args, **kwargs),)

        for layer in inner.layers:
            layer.__class__ = Old

    def loop(
        self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, **kw
    ):
        x = self.embed_tokens(input_ids)
        angles = self.rotary_emb(x, torch.arange(x.shape[1])[None])
        kept = x
        for i, layer in enumerate(self.layers):
            if kind == "stopped" and i == 1:
                continue
            out = layer(x, attention_mask=None, position_embeddings=angles)
            x = out[0] if kind == "tuples" else out
            if kind == "between":
                x = x + x.mean(1, keepdim=True)
            if i == 0:
                kept = x
        x = x + kept if kind == "kept" else x
        return types.SimpleNamespace(last_hidden_state=self.norm(x), past_key_values=None)

    inner.__class__ = type("Remote", (type(inner),), {"forward": loop})

    def forward(model, batch):
        return inner(batch["input_ids"]).last_hidden_state

    def loss(states, batch):
        return states.square().mean((1, 2)) + states[:, -1, 0]

    if kind == "stopped":  # its adapter takes no part
        with pytest.raises(EngineError, match=r"layers\.1\.self_attn\.q_proj"):
            Engine(model).sample_grads(forward, loss, batch)
        return
    engine = check(model, batch, forward=forward, loss=loss, curved=False)
    assert fused(engine) == (kind == "tuples")


def test_partial_rotation():
    model, batch = tiny(), unpadded()
    import transformers.models.llama.modeling_llama as modeling

    inner = model.base_model.model.model
    half = type(inner.rotary_emb)

    class Partial(half):
        def forward(self, x, position_ids):
            cos, sin = half.forward(self, x, position_ids)
            return cos[..., :4], sin[..., :4]

    inner.rotary_emb.__class__ = Partial
    own = modeling.apply_rotary_pos_emb

    def partly(q, k, cos, sin, **kw):
        width = cos.shape[-1]
        turned = own(q[..., :width], k[..., :width], cos, sin)
        return [torch.cat([a, b[..., width:]], -1) for a, b in zip(turned, (q, k), strict=True)]

    modeling.apply_rotary_pos_emb = partly
    try:
        assert not fused(check(model, batch))
    finally:
        modeling.apply_rotary_pos_emb = own


def test_padding_that_the_loss_looks_at():
    model, batch, forward = tiny(), batch_of(), calling()

    def at_tokens(logits, batch):
        return (logits.logsumexp(-1).square() * batch["attention_mask"]).mean(1)

    assert fused(check(model, batch, forward=forward, loss=at_tokens))
    engine = check(model, batch, forward=forward, loss=everywhere)
    assert "padding" in str(engine.report())
    cotangents = torch.randn(1, *forward(model, batch).shape, dtype=torch.float64)
    got = engine.vjp(forward, batch, cotangents)

    def product(logits, one):
        i = next(i for i in range(5) if torch.equal(batch["input_ids"][i], one["input_ids"][0]))
        return (logits * cotangents[0, i]).sum((1, 2))

    assert relative(got[0], plain_grads(model, batch, forward=forward, loss=product).sum(0)) < 1e-9


def test_a_cache_that_is_asked_for_is_made():
    def forward(model, batch):
        ids = batch["input_ids"]
        prompt = model(input_ids=ids[:, :4], use_cache=True)
        return model(
            input_ids=ids[:, 4:], past_key_values=prompt.past_key_values, use_cache=True
        ).logits

    check(tiny(), unpadded(), forward=forward, loss=everywhere)


def test_inner_modules_called_by_the_user():
    model, batch = tiny(), unpadded()

    def forward(model, batch):
        logits = label_logits(model, batch)
        layer = part(model, "layers.0.self_attn.q_proj")
        return logits, layer(model.get_input_embeddings()(batch["input_ids"]))

    def loss(outputs, batch):
        return label_loss(outputs[0], batch) + outputs[1].square().mean((1, 2))

    check(model, batch, forward=forward, loss=loss)


def test_a_matrix_in_the_loss_by_itself():
    model, batch = tiny(), unpadded()
    matrix = part(model, "layers.0.self_attn.q_proj.lora_A.default")

    def penalised(outputs, batch):
        return label_loss(outputs, batch) + matrix.weight.square().sum()

    for flag in (True, False):
        matrix.weight.requires_grad_(flag)
        with pytest.raises(EngineError, match="uses a LoRA matrix by itself"):
            Engine(model).sample_grads(label_logits, penalised, batch)
    matrix.weight.requires_grad_(True)
    vector = torch.randn(1, Engine(model).d, dtype=torch.float64)
    got = Engine(model).hvp(label_logits, penalised, batch, vector)
    assert relative(got, plain_hvp(model, batch, vector[0], label_logits, penalised)) <= 1e-8


# Precision.


@pytest.mark.parametrize("where", ["outside", "inside", "wrapped"])
def test_autocast(where):
    """As plain autograd under the same autocast, which rounds alike."""
    model, batch = adapted(llama(attention_dropout=0.0), lora_dropout=0.0).eval(), batch_of()

    def inside(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return label_logits(model, batch)

    if where == "wrapped":  # as accelerate does in Trainer(bf16=True), and leaves it
        own = model.forward
        model.forward = torch.autocast("cpu", torch.bfloat16)(own)
        inside = label_logits
    expected = plain_grads(model, batch, forward=inside if where != "outside" else _outside)
    engine = Engine(model)
    if where == "outside":
        with torch.autocast("cpu", torch.bfloat16):
            got = engine.sample_grads(*FACE, batch)
    else:
        got = engine.sample_grads(inside, label_loss, batch)
    assert not fused(engine)
    # The rounding of one batch of five and five batches of one differs; each is bfloat16's.
    assert relative(got, expected) <= 0.03
    vectors = torch.randn(1, engine.d)
    assert engine.hvp(inside, label_loss, batch, vectors).isfinite().all()


def _outside(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return label_logits(model, batch)


# Models that are wrapped.


def test_wrappers_are_refused_by_name():
    model = tiny()
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        with pytest.raises(UnsupportedLayerError, match="compiled or wrapped"):
            Engine(wrapped)
    engine = Engine(model)
    part(model, "layers.0").compile(backend="eager")
    with pytest.raises(UnsupportedLayerError, match="compiled or wrapped"):
        engine.sample_grads(*FACE, batch_of())
