"""Runs the decoder layers of the Llama family on the ops made for them, where that is the same.

A layer is known by the names of its parts, and used only where a probe gives the same numbers as
the model's own code, and where the attention mask is causal, with nothing but padding left out.
Everything else runs as it is, with its LoRA linears replaced one by one. Layers may be on the CPU,
or on a GPU where the library has kernels for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fudlr_ext import _C
from fudlr_ext.decoder_layer import Decoder, Norm, Part, Pass
from fudlr_ext.layers import Layout, LoraLayer
from fudlr_ext.packed import Packed, Packing, pack
from fudlr_ext.probe import ROUNDING, same


@dataclass
class Request:
    """The only positions whose hidden states will be looked at.

    Attributes:
        positions: [n, L], real ones; they may repeat.
        mask: [n, t], which positions are no padding; None: all.
        served: Whether the model's last layer gave these positions alone, as [n, L, d].
    """

    positions: Tensor
    mask: Tensor | None
    served: bool = False


_request: ContextVar[Request | None] = ContextVar("fudlr_request", default=None)


@contextmanager
def only(positions: Tensor, mask: Tensor | None) -> Iterator[Request]:
    """Say that of what the model computes within, only these positions' outputs will be used."""
    request = Request(positions, mask)
    token = _request.set(request)
    try:
        yield request
    finally:
        _request.reset(token)


_found: WeakKeyDictionary[Layout, list[Decoder]] = WeakKeyDictionary()


Run = Callable[[Decoder, Packed, Tensor], Tensor]
"""Computes a decoder layer from x [T, d], packed; the graph is its own affair."""


def usable(model: nn.Module, layout: Layout) -> list[Decoder]:
    """Return the decoder layers that can run on our ops now; the probe runs once for a layout.

    Layers with somebody's hooks within are left to their own code, which calls these, and all of
    them under autocast, which knows nothing of our ops.
    """
    device = layout.device
    if not _has_kernels(device) or torch.is_autocast_enabled(device.type):
        return []
    if layout not in _found:
        for lora in layout.layers:
            lora.check_state()
        _found[layout] = find(model, layout)
    layers = _found[layout]
    return [] if any(_hooked(layer) for layer in layers) else layers


def taped(tape: Any) -> Run:
    """Layers as nodes of the graph, whose backward hands the adapters' factors to `tape`."""

    def run(layer: Decoder, packed: Packed, x: Tensor) -> Tensor:
        if layer.adapted or x.requires_grad:
            out: Tensor = _Layer.apply(x, tape.anchor, (layer, packed), tape)  # type: ignore[no-untyped-call]
            return out
        return Pass(layer, packed, x).out

    return run


@contextmanager
def replaced(model: nn.Module, layout: Layout, run: Run) -> Iterator[None]:
    """Let the decoder layers that are usable go through `run`; entered with the model as it is."""
    layers = usable(model, layout)
    if not layers:
        yield
        return
    trunk = Trunk(layers, run)
    before = [layer.module.__dict__.get("forward") for layer in layers]
    try:
        for i, layer in enumerate(layers):
            own = layer.module.forward
            layer.module.__dict__["forward"] = partial(trunk.forward, i, own)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            layer.module.__dict__.pop("forward", None)
            if forward is not None:
                layer.module.__dict__["forward"] = forward


def _hooked(layer: Decoder) -> bool:
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        for module in layer.module.modules()
        if module is not layer.module
    )


def _has_kernels(device: torch.device) -> bool:
    return device.type == "cpu" or (device.type == "cuda" and "cuda" in _C.devices())


def find(model: nn.Module, layout: Layout) -> list[Decoder]:
    """Return the model's decoder layers in order, or none where they cannot be used."""
    if layout.dtype not in ROUNDING:
        return []
    loras = {id(layer.module): layer for layer in layout.layers}
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    for stack in stacks:
        if not all(hasattr(m, "self_attn") and hasattr(m, "mlp") for m in stack):
            continue
        found = [_decoder(module, loras) for module in stack]
        layers = [
            layer
            for layer in found
            if layer is not None and same(layer, layout.dtype, layout.device)
        ]
        if len(layers) == len(stack) == len({id(m) for m in stack}):
            return layers
    return []


def _decoder(module: Any, loras: dict[int, LoraLayer]) -> Decoder | None:
    attention, mlp = module.self_attn, module.mlp
    parts, norms = {}, []
    try:
        for name in ("q", "k", "v", "o", "gate", "up", "down"):
            linear = getattr(mlp if len(name) > 1 else attention, f"{name}_proj")
            lora = loras.get(id(linear))
            parts[name] = Part(linear if lora is None else lora.base, lora)
            if type(parts[name].base) is not nn.Linear:
                return None
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = getattr(module, name)
            eps = getattr(norm, "variance_epsilon", None)
            norms.append(Norm(norm, float(norm.eps if eps is None else eps)))
            if norm.weight.dim() != 1:
                return None
        width, scale = int(attention.head_dim), float(attention.scaling)
    except (AttributeError, TypeError):
        return None
    heads, key_heads = (parts[name].base.out_features // width for name in "qk")
    if not key_heads or heads % key_heads or parts["q"].base.out_features % width:
        return None
    return Decoder(module, parts, (norms[0], norms[1]), heads, key_heads, scale)


_UNDERSTOOD = {
    "attention_mask",
    "position_embeddings",
    "position_ids",
    "cache_position",
    "use_cache",
}


def _asks_for_more(kwargs: dict[str, Any]) -> bool:
    """Whether a caller says something that only the layer's own code understands.

    Such as a cache of earlier positions, whose name has changed from one transformers to the next.
    """
    return any(
        value is not None and value is not False
        for name, value in kwargs.items()
        if name not in _UNDERSTOOD
    )


def _same_tensors(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return all(_same_tensors(a, b) for a, b in zip(one, other, strict=True))
    return False


class Trunk:
    """The decoder layers of one model within one pass."""

    def __init__(self, layers: list[Decoder], run: Run) -> None:
        self.layers, self.run = layers, run
        self._packing: Packing | None = None
        self._shape: tuple[int, int] | None = None
        self._said: dict[str, Any] = {}

    def forward(self, index: int, own: Any, x: Tensor, **kwargs: Any) -> Any:
        """Compute layer `index`, by its `own` forward where ours would not be the same."""
        if index == 0:
            self._shape = (x.shape[0], x.shape[1]) if x.dim() == 3 else None
            self._packing = self._locate(x, kwargs) if self._shape else None
            self._said = kwargs
        elif self._packing is not None and not self._says_the_same(kwargs):
            x, self._packing = self._unpacked(x, self._packing.rows), None
        packing = self._packing
        if packing is None:
            return own(x, **kwargs)
        last, layer = index == len(self.layers) - 1, self.layers[index]
        request = _request.get() if packing.slots is not None else None
        if index == 0:
            x = x.reshape(-1, x.shape[-1])
            if packing.rows is not None:
                x = x[packing.rows]
        x = self.run(layer, packing.packed if last else packing.packed.everything(), x)
        if not last:
            return x
        if packing.slots is not None and request is not None:
            request.served = True
            return x[packing.slots]
        return x.reshape(*self._shape, -1)  # type: ignore[misc]

    def _says_the_same(self, kwargs: dict[str, Any]) -> bool:
        """Whether a layer is given what the first was: some have windows or angles of their own.

        Other tensors are compared, for which a GPU is waited for; most models hand the same on.
        """
        shared = all(
            _same_tensors(kwargs.get(name), self._said.get(name))
            for name in ("attention_mask", "position_embeddings")
        )
        return shared and not _asks_for_more(kwargs)

    def _unpacked(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Return packed positions [T, d] as [n, t, d], zero at the padding."""
        assert self._shape is not None
        n, t = self._shape
        if rows is not None:
            x = x.new_zeros(n * t, x.shape[-1]).index_copy(0, rows, x)
        return x.reshape(n, t, -1)

    def _locate(self, x: Tensor, kwargs: dict[str, Any]) -> Packing | None:
        """Return where the positions lie, or None where the mask asks for something else."""
        embeddings, mask = kwargs.get("position_embeddings"), kwargs.get("attention_mask")
        if embeddings is None or x.dtype not in ROUNDING or _asks_for_more(kwargs):
            return None
        n, t = x.shape[:2]
        request = _request.get()
        positions = None if request is None else request.positions
        if request is not None and request.mask is not None:
            real = request.mask != 0
        else:
            real = torch.ones(n, t, dtype=torch.bool, device=x.device)
        if real.shape != (n, t) or (positions is not None and positions.shape[0] != n):
            return None
        given = (real, *embeddings, *(each for each in (mask, positions) if each is not None))
        if any(each.device != x.device for each in given):
            return None
        holds = self._causal(mask, real)
        if holds is None:
            return None
        cos, sin = (each.to(x.dtype) for each in embeddings)
        return pack(real, positions, holds, (cos, sin))

    def _causal(self, mask: Tensor | None, real: Tensor) -> Tensor | None:
        """Whether real positions see the real ones up to themselves, and nothing else, [].

        None where the shapes say already that they do not.
        """
        t = real.shape[1]
        if mask is None:
            config: Any = getattr(self.layers[0].module.self_attn, "config", None)
            implementation = getattr(config, "_attn_implementation", None)
            return real.all() if implementation == "sdpa" else None
        if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2:] != (t, t):
            return None
        seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > -1
        expected = torch.ones(t, t, dtype=torch.bool, device=real.device).tril() & real[:, None, :]
        wrong = ((seen != expected) & real[:, :, None]).any()
        if mask.dtype != torch.bool:
            wrong = wrong | (seen & (mask[:, 0] != 0)).any()
        return wrong.logical_not()


class _Layer(torch.autograd.Function):
    """A decoder layer as one node of the graph, whose backward makes no weight gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, run: tuple[Decoder, Packed], tape: Any
    ) -> Tensor:
        ctx.run, ctx.tape = Pass(*run, x), tape
        tape.held += ctx.run.nbytes
        out = ctx.run.out
        # The output's graph holds this node. Were the output held by the node too, nothing of the
        # pass would go before Python looks for cycles, which few large tensors give it no cause to.
        del ctx.run.out
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        tape = ctx.tape
        grad = ctx.run.backward(
            lambda use: use.emit(tape), delta.contiguous(), ctx.needs_input_grad[0]
        )
        return grad, None, None, None
