"""What the fast paths take for granted is proven in every pass, or the model's own code runs.

The right value is always autograd's, one sample a batch, in float64, by the model's own code.
"""

import types
from contextlib import contextmanager
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
    assert str(engine.report()) == "first order: 2 of 2 decoder layers fused."


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


# Layers hooked, patched or changed: before the first pass, after it, or within forward() alone.


def hook_on(name, kind="forward"):
    def change(model):
        module = part(model, name)
        if kind == "forward":
            return module.register_forward_hook(lambda m, a, out: out * 1.1).remove
        if kind == "pre":
            return module.register_forward_pre_hook(lambda m, a: (a[0] * 0.9,)).remove
        return module.register_full_backward_hook(lambda m, gi, go: (gi[0] * 0.5,)).remove

    return change


def patch_on(name):
    def change(model):
        module = part(model, name)
        own = module.forward
        module.forward = lambda *a, **k: own(*a, **k) * 1.1
        return lambda: module.__dict__.pop("forward")

    return change


def class_patch(name):
    def change(model):
        kind = type(part(model, name))
        own = kind.forward
        kind.forward = lambda self, *a, **k: own(self, *a, **k) * 1.1
        return lambda: setattr(kind, "forward", own)

    return change


def activation(model):
    mlps = [m for m in model.modules() if hasattr(m, "act_fn")]
    before = [m.act_fn for m in mlps]
    for mlp in mlps:
        mlp.act_fn = nn.GELU()
    return lambda: [setattr(m, "act_fn", b) for m, b in zip(mlps, before, strict=True)]


def scaling(model):
    attention = part(model, "layers.0.self_attn")
    before, attention.scaling = attention.scaling, attention.scaling * 2
    return lambda: setattr(attention, "scaling", before)


def lora_scaling(model):
    layer = part(model, "layers.1.mlp.up_proj")
    before = layer.scaling["default"]
    layer.scaling["default"] = 3 * before
    return lambda: layer.scaling.update(default=before)


def replaced_mlp(model):
    layer = part(model, "layers.1")
    before = layer.mlp

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = before

        def forward(self, x):
            return 2 * self.inner(x)

    layer.mlp = Twice()
    return lambda: setattr(layer, "mlp", before)


def rotation(model):
    import transformers.models.llama.modeling_llama as modeling

    own = modeling.apply_rotary_pos_emb
    modeling.apply_rotary_pos_emb = lambda q, k, cos, sin, **kw: (q * 0.5, k)
    return lambda: setattr(modeling, "apply_rotary_pos_emb", own)


def global_hook(model):
    def hook(module, args, out):
        return out * 1.1 if isinstance(module, nn.Linear) else None

    return nn.modules.module.register_module_forward_hook(hook).remove


CHANGES = {
    "steering hook on a layer": hook_on("layers.0"),
    "hook on base_layer": hook_on("layers.0.self_attn.q_proj.base_layer"),
    "hook on lora_A": hook_on("layers.0.mlp.up_proj.lora_A.default"),
    "pre-hook on lora_B": hook_on("layers.1.mlp.down_proj.lora_B.default", "pre"),
    "pre-hook on the LoRA layer": hook_on("layers.1.mlp.down_proj", "pre"),
    "backward hook on an mlp": hook_on("layers.1.mlp", "backward"),
    "patched mlp": patch_on("layers.0.mlp"),
    "patched LoRA layer": patch_on("layers.0.self_attn.v_proj"),
    "patched class of mlps": class_patch("layers.0.mlp"),
    "activation": activation,
    "attention scaling": scaling,
    "LoRA scaling": lora_scaling,
    "replaced mlp": replaced_mlp,
    "rotation": rotation,
    "hook on all modules": global_hook,
}
ONE_BACKWARD = {"backward hook on an mlp"}  # such hooks have no second derivative of their own


@pytest.mark.parametrize("name", CHANGES)
def test_changes(name):
    """Made after the first pass, undone, and made within forward()."""
    model, batch, change = tiny(), batch_of(n=2), CHANGES[name]
    curved = name not in ONE_BACKWARD
    engine, plain = Engine(model), plain_grads(model, batch)
    assert relative(engine.sample_grads(*FACE, batch), plain) <= 1e-9
    assert fused(engine)
    undo = change(model)
    try:
        changed = plain_grads(model, batch)
        check(model, batch, engine=engine, curved=curved)  # several passes: probed anew, or not
    finally:
        undo()
    assert relative(plain, changed) > 1e-3
    for _ in range(2):  # as ever, if not from one pass to the next
        assert relative(engine.sample_grads(*FACE, batch), plain) <= 1e-9
    assert fused(engine)

    def within(model, batch):
        undo = change(model)
        try:
            return label_logits(model, batch)
        finally:
            undo()

    if curved:  # a backward hook would be gone by the backward pass
        assert relative(engine.sample_grads(within, label_loss, batch), changed) <= 1e-9


def test_a_patch_on_a_layer_that_ran_by_itself():
    """The engine's own forward, which it writes over it, must not hide it."""
    model, batch = tiny(hidden_act="relu"), batch_of(n=2)
    engine = Engine(model)
    engine.sample_grads(*FACE, batch)
    assert len(engine.report().single) == 14
    undo = patch_on("layers.0.self_attn.v_proj")(model)
    check(model, batch, engine=engine, curved=False)
    assert "has a forward of its own" in str(engine.report())
    undo()
    check(model, batch, engine=engine, curved=False)


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
    assert fused(check(model, batch, engine=engine))  # and afterwards as ever


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


# The check against plain autograd.


@contextmanager
def wrong_reducer(monkeypatch):
    from fudlr_ext import collect

    own = collect.Collector._add

    def slightly(self, block, left, right, offsets):
        own(self, block, left * 1.01, right, offsets)

    with monkeypatch.context() as patched:
        patched.setattr(collect.Collector, "_add", slightly)
        yield


def test_one_row_is_checked(monkeypatch):
    model, batch = tiny(), batch_of()
    engine = Engine(model, check=True)
    with (
        wrong_reducer(monkeypatch),
        pytest.raises(EngineError, match="compared with plain autograd"),
    ):
        engine.sample_grads(*FACE, batch)
    engine = Engine(model, check=True)
    engine.hvp(*FACE, batch, torch.zeros(1, engine.d))
    with wrong_reducer(monkeypatch):
        engine.sample_grads(*FACE, batch)  # once


def test_samples_that_see_each_other_are_found_by_the_check():
    def contrastive(outputs, batch):
        return outputs.mean((1, 2)) * outputs.sum()

    engine = Engine(tiny(), check=True)
    with pytest.raises(EngineError, match="samples depend on each other"):
        engine.sample_grads(label_logits, contrastive, batch_of())
