"""Layers hooked, patched or changed: before the first pass, after it, or within forward() alone."""

import pytest
import torch
from engine_models import batch_of, check, fused, part, plain_grads, relative, tiny
from torch import nn

from fudlr_ext import Engine, label_logits, label_loss

FACE = (label_logits, label_loss)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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
    for _ in range(2):  # the first pass may still be unfused
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
