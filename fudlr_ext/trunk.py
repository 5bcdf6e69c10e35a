"""Runs the decoder layers of the Llama family on the ops made for them, where that is the same.

A layer is known by the names of its parts, and used only where a probe gives the same numbers as
the model's own code, and where the attention mask is causal, with nothing but padding left out.
Everything else runs as it is, with its LoRA linears replaced one by one.
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

from fudlr_ext.decoder import Decoder, Norm, Part, Pass, Places
from fudlr_ext.layers import Layout, LoraLayer

_PROBE = {torch.float32: 2e-5, torch.float64: 1e-12}  # relative error that rounding explains


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


Run = Callable[[Decoder, Places, Tensor], Tensor]
"""Computes a decoder layer from x [T, d], packed; the graph is its own affair."""


def usable(model: nn.Module, layout: Layout) -> list[Decoder]:
    """Return the decoder layers that can run on our ops now; the probe runs once for a layout.

    Layers with somebody's hooks within are left to their own code, which calls these.
    """
    if layout not in _found:
        for lora in layout.layers:
            lora.check_state()
        _found[layout] = find(model, layout)
    layers = _found[layout]
    return [] if any(_hooked(layer) for layer in layers) else layers


def taped(tape: Any) -> Run:
    """Layers as nodes of the graph, whose backward hands the adapters' factors to `tape`."""

    def run(layer: Decoder, places: Places, x: Tensor) -> Tensor:
        if layer.adapted or x.requires_grad:
            out: Tensor = _Layer.apply(x, tape.anchor, (layer, places), tape)  # type: ignore[no-untyped-call]
            return out
        return Pass(layer, places, x).out

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


def find(model: nn.Module, layout: Layout) -> list[Decoder]:
    """Return the model's decoder layers in order, or none where they cannot be used."""
    if layout.device.type != "cpu" or layout.dtype not in _PROBE:
        return []
    loras = {id(layer.module): layer for layer in layout.layers}
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    for stack in stacks:
        if not all(hasattr(m, "self_attn") and hasattr(m, "mlp") for m in stack):
            continue
        found = [_decoder(module, loras) for module in stack]
        layers = [layer for layer in found if layer is not None and _same(layer, layout.dtype)]
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


def _same(layer: Decoder, dtype: torch.dtype) -> bool:
    """Whether the layer's own code and ours give the same numbers for a few random positions."""
    tensors = [part.base.weight for part in layer.parts.values()]
    tensors += [part.lora.a for part in layer.parts.values() if part.lora is not None]
    tensors += [norm.weight for norm in layer.norms]
    if any(tensor.dtype != dtype or tensor.device.type != "cpu" for tensor in tensors):
        return False
    generator = torch.Generator().manual_seed(0)
    t, d = 5, layer.parts["q"].base.in_features
    width = layer.parts["q"].base.out_features // layer.heads
    x = torch.randn(1, t, d, generator=generator, dtype=dtype)
    angle = torch.randn(1, t, width // 2, generator=generator, dtype=dtype).repeat(1, 1, 2)
    cos, sin = angle.cos(), angle.sin()
    hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
    mask = torch.zeros(1, 1, t, t, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    training = [m for m in layer.module.modules() if m.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            theirs = layer.module(x, attention_mask=mask, position_embeddings=(cos, sin))
            theirs = theirs[0] if isinstance(theirs, tuple) else theirs
            offsets, limits = torch.tensor([0, t]), torch.arange(1, t + 1)
            ours = Pass(layer, Places(offsets, limits, cos[0], sin[0]), x[0]).out[None]
    except Exception:  # whatever other code wants from its caller, it is not the family's
        return False
    finally:
        for module in training:
            module.training = True
    scale = float((theirs - x).abs().max())
    return (
        theirs.shape == ours.shape and float((theirs - ours).abs().max()) <= _PROBE[dtype] * scale
    )


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
        self._places: Places | None = None
        self._slots: Tensor | None = None
        self._real: Tensor | None = None
        self._shape: tuple[int, int] | None = None
        self._said: dict[str, Any] = {}

    def forward(self, index: int, own: Any, x: Tensor, **kwargs: Any) -> Any:
        """Compute layer `index`, by its `own` forward where ours would not be the same."""
        if index == 0:
            self._shape = (x.shape[0], x.shape[1]) if x.dim() == 3 else None
            self._places = self._locate(x, kwargs) if self._shape else None
            self._said = kwargs
        elif self._places is not None and not self._says_the_same(kwargs):
            x, self._places = self._unpacked(x), None
        places = self._places
        if places is None:
            return own(x, **kwargs)
        last, layer = index == len(self.layers) - 1, self.layers[index]
        request = _request.get() if self._slots is not None else None
        if index == 0:
            x = x.reshape(-1, x.shape[-1])
            if self._real is not None:
                x = x[self._real]
        if not last or self._slots is None:
            places = Places(places.offsets, places.limits, places.cos, places.sin)
        x = self.run(layer, places, x)
        if not last:
            return x
        if self._slots is not None and request is not None:
            request.served = True
            return x[self._slots]
        return x.reshape(*self._shape, -1)  # type: ignore[misc]

    def _says_the_same(self, kwargs: dict[str, Any]) -> bool:
        """Whether a layer is given what the first was: some have windows or angles of their own."""
        shared = all(
            _same_tensors(kwargs.get(name), self._said.get(name))
            for name in ("attention_mask", "position_embeddings")
        )
        return shared and not _asks_for_more(kwargs)

    def _unpacked(self, x: Tensor) -> Tensor:
        """Return packed positions [T, d] as [n, t, d], zero at the padding."""
        assert self._shape is not None
        n, t = self._shape
        if self._real is not None:
            x = x.new_zeros(n * t, x.shape[-1]).index_copy(0, self._real, x)
        return x.reshape(n, t, -1)

    def _locate(self, x: Tensor, kwargs: dict[str, Any]) -> Places | None:
        """Return where the positions lie, or None where the mask asks for something else."""
        embeddings, mask = kwargs.get("position_embeddings"), kwargs.get("attention_mask")
        if embeddings is None or x.dtype not in _PROBE or _asks_for_more(kwargs):
            return None
        n, t = x.shape[:2]
        request = _request.get()
        real = torch.ones(n, t, dtype=torch.bool)
        if request is not None and request.mask is not None:
            real = request.mask != 0
        fits = real.shape == (n, t) and (request is None or request.positions.shape[0] == n)
        if not fits or not self._causal(mask, real):
            return None
        self._real = None if bool(real.all()) else real.flatten().nonzero().flatten()
        lengths = real.sum(1)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        limits = real.cumsum(1)[real]
        cos, sin = (e.to(x.dtype).expand(n, t, -1)[real] for e in embeddings)
        self._slots = None
        if request is None:
            return Places(offsets, limits, cos, sin)
        if not bool(real.gather(1, request.positions).all()):
            return None
        used = torch.zeros(n, t, dtype=torch.bool).scatter_(1, request.positions, True)
        wanted = used[real].nonzero().flatten()
        rank = used.flatten().cumsum(0).view(n, t) - 1
        self._slots = rank.gather(1, request.positions)
        counts = torch.cat([torch.zeros(1, dtype=torch.int64), used.sum(1).cumsum(0)])
        return Places(offsets, limits, cos, sin, wanted, counts)

    def _causal(self, mask: Tensor | None, real: Tensor) -> bool:
        """Whether real positions see the real ones up to themselves, and nothing else."""
        n, t = real.shape
        if mask is None:
            config: Any = getattr(self.layers[0].module.self_attn, "config", None)
            implementation = getattr(config, "_attn_implementation", None)
            return implementation == "sdpa" and bool(real.all())
        if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2:] != (t, t):
            return False
        seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > -1
        if mask.dtype != torch.bool and bool((seen & (mask[:, 0] != 0)).any()):
            return False
        expected = torch.ones(t, t, dtype=torch.bool).tril() & real[:, None, :]
        return torch.equal(seen.expand(n, t, t) & real[:, :, None], expected & real[:, :, None])


class _Layer(torch.autograd.Function):
    """A decoder layer as one node of the graph, whose backward makes no weight gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, run: tuple[Decoder, Places], tape: Any
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
