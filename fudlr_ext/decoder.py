"""Finds the decoder layers of the Llama family that can run on the ops made for them.

A model's stack of layers is known by the names of its parts, and used only where a probe gives the
same numbers as the model's own code. What the probe cannot know is looked at in every call of the
decoder: `fused_call`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fudlr_ext import _C
from fudlr_ext.decoder_layer import DecoderLayer, Norm, Part
from fudlr_ext.layers import Layout, LoraLayer
from fudlr_ext.probe import Probed, compute_dtype, first_order_dtype, probe, same_in
from fudlr_ext.quantised import quantised
from fudlr_ext.unchanged import Unchanged, plain_weight


@dataclass
class Stack:
    """A model's decoder layers, and why they cannot be fused, if so.

    Attributes:
        parent: The module that loops over them.
        name: Their name in it.
        layers: What each is made of; empty where they are not fused.
        dtype: What the fused layers compute in.
        first_order: What they compute first derivatives in, which may be 16 bits.
        probed: What the probe found of their own code.
        why_not: Why they are not fused; empty where they are.
        snapshot: All of their modules, as they were.
        stale: Whether a call found that they are no longer as they were.
    """

    parent: nn.Module | None = None
    name: str = ""
    layers: list[DecoderLayer] = field(default_factory=list)
    dtype: torch.dtype = torch.float32
    first_order: torch.dtype = torch.float32
    probed: Probed | None = None
    why_not: str = "the model has no stack of decoder layers with self_attn and mlp"
    snapshot: Unchanged | None = None
    stale: bool = False

    def weights(self) -> Iterator[Tensor | None]:
        """Yield all weights that the fused layers read."""
        for layer in self.layers:
            for part in layer.parts.values():
                yield part.base.weight
            for norm in (*layer.norms, *(layer.head_norms or ())):
                yield norm.module.weight


def find(model: nn.Module, layout: Layout, known: Stack | None = None) -> Stack:
    """Return the model's stack, probed; the one that is `known` where nothing has changed since.

    To be called in evaluation mode, with the model's own forwards in place.
    """
    if known is not None and known.snapshot is not None:
        # Each call of the decoder looks at the snapshot of layers that are fused.
        same = bool(known.layers and not known.stale) or not known.snapshot.broken()
        if same and (not known.layers or _same_weights(known, layout)):
            known.stale = False
            return known
    stack = Stack()
    for parent in model.modules():
        for name, modules in parent.named_children():
            if not isinstance(modules, nn.ModuleList) or not len(modules):
                continue
            if all(hasattr(m, "self_attn") and hasattr(m, "mlp") for m in modules):
                stack = _examine(parent, name, layout)
                if stack.layers:
                    return stack
    return stack


def _examine(parent: nn.Module, name: str, layout: Layout) -> Stack:
    """Look at one stack: its parts, and whether fused layers give the same as its own code."""
    modules: Any = parent.get_submodule(name)
    named = [(f"{name}.{path}" if path else name, m) for path, m in modules.named_modules()]
    stack = Stack(parent, name, snapshot=Unchanged(named))
    assert stack.snapshot is not None
    if problem := stack.snapshot.broken():
        stack.why_not, stack.snapshot = problem, None  # to be looked at again in the next pass
        return stack
    stack.why_not = _cannot_run(layout)
    if not stack.why_not and len({id(m) for m in modules}) < len(modules):
        stack.why_not = "a decoder layer is used more than once"
    if stack.why_not:
        return stack
    loras = {id(x.module): x for x in layout.layers if isinstance(x, LoraLayer)}
    layers = []
    for i, module in enumerate(modules):
        layer = _describe(module, loras)
        if isinstance(layer, str):
            stack.why_not = f"{name}.{i} is not fused: {layer}"
            return stack
        layers.append(layer)
    dtype = compute_dtype(layers, layout)
    if isinstance(dtype, str):
        stack.why_not = dtype
        return stack
    probed = []
    for i, layer in enumerate(layers):
        found = probe(layer, dtype, layout.device)
        if found is None:  # with the other gate, that is Gemma's
            layers[i] = replace(layer, gelu=True)
            found = probe(layers[i], dtype, layout.device)
        probed.append(found)
        if found is None:
            break
    wrong = [i for i, found in enumerate(probed) if found is None or found != probed[0]]
    if wrong:
        stack.why_not = f"a probe of {name}.{wrong[0]} gave other numbers than its own code"
        return stack
    half = first_order_dtype(layers, layout.device)
    if half is not None and not all(same_in(half, layer, layout.device) for layer in layers):
        stack.why_not = f"a probe of {name} in {half} gave other numbers than in {dtype}"
    else:
        stack.layers, stack.dtype, stack.probed = layers, dtype, probed[0]
        stack.first_order = half or dtype
    return stack


def _cannot_run(layout: Layout) -> str:
    device = layout.device.type
    if device == "cpu" or (device == "cuda" and "cuda" in _C.devices()):
        return ""
    return f"the library has no kernels for {device}"


def _same_weights(stack: Stack, layout: Layout) -> bool:
    """Whether the weights are plain and lie where the probe found them, in the same dtype."""
    if not all(
        plain_weight(weight) and weight.device == layout.device  # type: ignore[union-attr]
        for weight in stack.weights()
    ):
        return False
    dtype = compute_dtype(stack.layers, layout)
    first_order = first_order_dtype(stack.layers, layout.device) or dtype
    return (dtype, first_order) == (stack.dtype, stack.first_order)


def _describe(module: Any, loras: dict[int, LoraLayer]) -> DecoderLayer | str:
    """Return what a layer is made of, or what is missing."""
    attention, mlp = module.self_attn, module.mlp
    parts, norms = {}, []
    try:
        for name in ("q", "k", "v", "o", "gate", "up", "down"):
            linear = getattr(mlp if len(name) > 1 else attention, f"{name}_proj")
            lora = loras.get(id(linear))
            parts[name] = Part(linear if lora is None else lora.base, lora)
            _check_plain(f"{name}_proj", parts[name].base)
            if lora is not None and lora.block_c is not None:
                raise TypeError(f"the lora_B of {name}_proj has a bias")
        if hasattr(module, "pre_feedforward_layernorm"):
            return "it has norms after attention and MLP, as Gemma 2 and 3"
        for name in ("input_layernorm", "post_attention_layernorm"):
            norms.append(_norm(getattr(module, name)))
        heads_normed = None
        if hasattr(attention, "q_norm") or hasattr(attention, "k_norm"):
            heads_normed = (_norm(attention.q_norm), _norm(attention.k_norm))
        width, scale = int(attention.head_dim), float(attention.scaling)
    except (AttributeError, TypeError) as error:
        return str(error)
    if heads_normed is not None and any(len(n.module.weight) != width for n in heads_normed):  # type: ignore[arg-type]
        return "its norms of queries and keys are not of single heads"
    heads, key_heads = (parts[name].base.out_features // width for name in "qk")
    if not key_heads or heads % key_heads or parts["q"].base.out_features % width or width % 2:
        return f"its heads of {width} do not divide its projections"
    sizes = (heads, key_heads, scale, width)
    return DecoderLayer(module, parts, (norms[0], norms[1]), *sizes, heads_normed)


def _check_plain(name: str, base: nn.Module) -> None:
    """Raise where a projection is anything but a linear layer whose weight is at hand."""
    if packed := quantised(base):
        raise TypeError(f"{name} is quantised ({packed})")
    if type(base) is not nn.Linear:
        raise TypeError(f"{name} is {type(base).__name__}")
    if not plain_weight(base.weight):
        raise TypeError(f"the weight of {name} is no plain tensor")


@torch.no_grad()
def _norm(module: Any) -> Norm:
    """Return what an RMS norm is made of; the probe finds out whether it is one."""
    eps = getattr(module, "variance_epsilon", None)
    found = Norm(module, float(module.eps if eps is None else eps))
    if module.weight.dim() != 1:
        raise TypeError(f"the weight of {type(module).__name__} is no vector")
    # Ones, whose norm they nearly are themselves, tell weights from weights beside 1.
    ones = module(torch.ones_like(module.weight))
    plain, beside = ((ones - w).abs().sum() for w in (module.weight, 1 + module.weight))
    return replace(found, offset=int(beside < plain))
