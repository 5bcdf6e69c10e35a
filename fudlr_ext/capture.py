"""Runs a model with its LoRA layers replaced for a while, and leaves it as it was found.

`capturing` is for products of per-sample gradients: one backward pass hands every layer's factors
over and makes no weight gradient. `differentiable` is for curvature: the same forward pass as an
ordinary, twice differentiable function of the flat parameter vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fudlr_ext import decoder
from fudlr_ext.collect import Collector
from fudlr_ext.errors import EngineError
from fudlr_ext.layers import Layout, LoraLayer


class _LoraLinear(torch.autograd.Function):
    """Base and adapter in one node of the graph, whose backward makes no weight gradient.

    `anchor` is a scalar that requires a gradient and gets none: through it every layer lies on the
    way to what the backward pass asks for, even where no input of the layer requires a gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: LoraLayer, tape: Tape) -> Tensor:
        base = layer.base
        a, b = layer.a, layer.b
        y = F.linear(x, base.weight, base.bias)
        u = F.linear(x.to(a.dtype), a).mul_(layer.scaling)
        ctx.save_for_backward(x, u)
        ctx.layer, ctx.tape = layer, tape
        if y.dtype == u.dtype == b.dtype and y.is_contiguous():
            y.view(-1, y.shape[-1]).addmm_(u.reshape(-1, u.shape[-1]), b.t())
            return y
        return (y + F.linear(u, b)).to(y.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        x, u = ctx.saved_tensors
        layer: LoraLayer = ctx.layer
        v = (delta.to(layer.b.dtype) @ layer.b).mul_(layer.scaling)
        ctx.tape.receive(layer, x, u, delta, v)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        weight = layer.base.weight.detach()
        to_x = (delta.to(weight.dtype) @ weight).to(x.dtype)
        to_x += v.to(layer.a.dtype) @ layer.a
        return to_x, None, None, None


@contextmanager
def _replaced(model: nn.Module, layout: Layout, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Let every LoRA layer compute `forward(layer, x)`, the whole model in evaluation mode."""
    for layer in layout.layers:
        layer.check_state()
    training = [module for module in model.modules() if module.training]
    own = {layer.name: layer.module.__dict__.get("forward") for layer in layout.layers}
    try:
        for module in training:
            module.training = False
        for layer in layout.layers:
            layer.module.__dict__["forward"] = partial(forward, layer)
        # Gradients are the point: a caller's no_grad or inference_mode must not switch them off.
        with torch.inference_mode(False):  # which ends no_grad as well
            yield
    finally:
        for layer in layout.layers:
            before = own[layer.name]
            if before is None:
                layer.module.__dict__.pop("forward", None)
            else:
                layer.module.__dict__["forward"] = before
        for module in training:
            module.training = True


class Tape:
    """A forward pass whose LoRA layers can be asked for their factors, as often as is needed."""

    def __init__(self) -> None:
        self.anchor = torch.zeros((), requires_grad=True)
        self.held = 0  # bytes that fused layers keep, which autograd knows nothing of
        self._collector: Collector | None = None

    def backward(
        self,
        outputs: Tensor | Sequence[Tensor],
        cotangents: Sequence[Tensor] | None,
        collector: Collector,
        keep: bool = False,
        check: bool = True,
    ) -> None:
        """Go back from the outputs' sum, or their product with cotangents, into the collector.

        `keep` the graph for another time. Raises where an adapted layer is not reached, unless
        `check` is off.
        """
        outputs = [outputs.sum()] if isinstance(outputs, Tensor) else list(outputs)
        self._collector = collector
        try:
            torch.autograd.grad(
                outputs, self.anchor, cotangents, retain_graph=keep, allow_unused=True
            )
        finally:
            self._collector = None
        if check:
            collector.finish()

    def receive(
        self,
        layer: LoraLayer,
        x: Tensor,
        u: Tensor,
        delta: Tensor,
        v: Tensor,
        *,
        offsets: Tensor | None = None,
    ) -> None:
        """Take one use of a layer, from its node of the graph."""
        if self._collector is None:
            raise EngineError(
                "a graph that the engine made was differentiated from outside",
                f"{layer.name} was reached with nothing to collect its gradients",
                "Do not call backward() in forward() or loss(): the engine does",
            )
        self._collector.receive(layer, x, u, delta, v, offsets=offsets)


@contextmanager
def capturing(model: nn.Module, layout: Layout) -> Iterator[Tape]:
    """Yield a tape; what the model computes within can be differentiated through it."""
    tape = Tape()

    def forward(layer: LoraLayer, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _LoraLinear.apply(  # type: ignore[no-untyped-call]
            x, tape.anchor, layer, tape
        )

    with decoder.replaced(model, layout, decoder.taped(tape)), _replaced(model, layout, forward):
        yield tape


@contextmanager
def differentiable(model: nn.Module, layout: Layout, theta: Tensor) -> Iterator[None]:
    """Let the model compute with the LoRA parameters `theta` [d], differentiably in it."""

    def forward(layer: LoraLayer, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        a = layer.block_a.of(theta).to(layer.a.dtype)
        b = layer.block_b.of(theta).to(layer.b.dtype)
        y = F.linear(x, layer.base.weight.detach(), layer.base.bias)
        return (y + layer.scaling * F.linear(F.linear(x.to(a.dtype), a), b)).to(y.dtype)

    # The fused attention kernels have no second derivative.
    with _replaced(model, layout, forward), sdpa_kernel(SDPBackend.MATH):
        yield
