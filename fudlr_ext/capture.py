"""Runs a model so that its LoRA gradients can be taken sample by sample, and leaves it as it was.

`capturing` is for products of per-sample gradients: one backward pass hands over the two factors of
every LoRA matrix's gradients, and makes no weight gradient. A layer that is base plus adapter and
nothing else is one node of the graph (beside those of a quantised base, which computes by itself);
any other (hooks, autocast, a base of another kind) runs its own code, and its factors are taken at
its `lora_A` and `lora_B`. `differentiable` is for curvature: the model's own code as a twice
differentiable function of the flat parameter vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fudlr_ext.blocks import Adapted, Factors
from fudlr_ext.collect import Collector
from fudlr_ext.decoder_layer import DecoderLayer, Pass
from fudlr_ext.embeddings import Outside
from fudlr_ext.errors import EngineError
from fudlr_ext.layers import Layout, LoraLayer
from fudlr_ext.packed import Packed
from fudlr_ext.quantised import unpacked
from fudlr_ext.unchanged import Patch, modules_of


class Tape:
    """A forward pass whose LoRA layers can be asked for their factors, as often as is needed.

    Attributes:
        anchor: A scalar that requires a gradient and gets none: through it every layer lies on the
            way to what the backward pass asks for, even where no input of it requires a gradient.
        held: Bytes that fused layers keep, which autograd knows nothing of.
        single: Names of the layers that ran by themselves, as one node each.
        own: Names of those that ran their own code, with the reason.
        unproven: Whether some input's rows have yet to be shown to be the samples.
        counts: How many rows inputs had.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.anchor = torch.zeros((), requires_grad=True)
        self.held = 0
        self.single: set[str] = set()
        self.own: dict[str, str] = {}
        self.unproven = False
        self.counts: set[int] = set()
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
        `check` is off, and where the outputs depend on a LoRA matrix otherwise than by its layer.
        """
        outputs = [outputs.sum()] if isinstance(outputs, Tensor) else list(outputs)
        matrices = [p for p in self.layout.parameters() if p.requires_grad]
        self._collector = collector
        try:
            found = torch.autograd.grad(
                outputs, [self.anchor, *matrices], cotangents, retain_graph=keep, allow_unused=True
            )
        finally:
            self._collector = None
        if any(gradient is not None for gradient in found[1:]):
            raise EngineError(
                "the gradients of LoRA layers were asked for",
                "the loss also uses a LoRA matrix by itself, such as a penalty on its weights",
                "Leave that term out of the loss, and add its gradient by hand",
            )
        if check:
            collector.finish()

    @property
    def collector(self) -> Collector:
        """What takes the factors now."""
        if self._collector is None:
            raise EngineError(
                "a graph that the engine made was differentiated from outside",
                "a LoRA layer was reached with nothing to collect its gradients",
                "Do not call backward() in forward() or loss(): the engine does",
            )
        return self._collector

    def fused(self, layer: DecoderLayer, packed: Packed, x: Tensor) -> Tensor:
        """Compute a fused decoder layer as a node of the graph."""
        loras = [part.lora for part in layer.parts.values() if part.lora is not None]
        self.unproven = self.unproven or not all(lora.rows_proven for lora in loras)
        if layer.adapted or x.requires_grad:
            out: Tensor = _FusedLayer.apply(x, self.anchor, (layer, packed), self)  # type: ignore[no-untyped-call]
            return out
        return Pass(layer, packed, x).out

    def lora(self, layer: Adapted, own: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute an adapted layer from x, on the tape."""
        self.counts.add(x.shape[0])
        if isinstance(layer, Outside):
            self.unproven = self.unproven or not layer.rows_proven or x.dim() < 2
            self.single.add(layer.name)
            out = layer.compute(own, x, args, kwargs)
            whose = (layer, layer.factors)
            return _Watched.apply(out, self.anchor, x.detach(), whose, self)  # type: ignore[no-untyped-call]
        assert isinstance(layer, LoraLayer)
        reason = layer.why_own_code(x, args, kwargs)
        self.unproven = self.unproven or not layer.rows_proven or x.dim() < 3
        if not reason:
            self.single.add(layer.name)
            found = _LoraLinear.apply(x, self.anchor, layer, self)  # type: ignore[no-untyped-call]
            if layer.quantised:
                base = layer.base(x)
                found = base + found.to(base.dtype)
            problem = layer.prove(own, x, found)
            if not problem:
                return found
            reason = problem
        self.own[layer.name] = reason
        self.single.discard(layer.name)
        with _watched(layer, self):
            return own(x, *args, **kwargs)


class _LoraLinear(torch.autograd.Function):
    """Base and adapter in one node of the graph, whose backward makes no weight gradient.

    Of a layer with a quantised base the adapter's part alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: LoraLayer, tape: Tape) -> Tensor:
        base = layer.base
        a, b = layer.a, layer.b
        u = F.linear(x.to(a.dtype), a).mul_(layer.scaling)
        ctx.save_for_backward(x, u)
        ctx.layer, ctx.tape = layer, tape
        if layer.quantised:
            part = F.linear(u, b)
            return part if layer.c is None else part + layer.scaling * layer.c
        y = F.linear(x, base.weight, base.bias)
        if layer.c is not None:
            y = (y + layer.scaling * layer.c).to(y.dtype)
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
        ctx.tape.collector.receive(layer, x, u, delta, v)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        to_x = (v.to(layer.a.dtype) @ layer.a).to(x.dtype)
        if not layer.quantised:
            weight = layer.base.weight.detach()
            to_x += (delta.to(weight.dtype) @ weight).to(x.dtype)
        return to_x, None, None, None


class _Watched(torch.autograd.Function):
    """The output of a module of whose input and output's gradient factors are made."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd's way
        ctx: Any,
        out: Tensor,
        anchor: Tensor,
        x: Tensor,
        whose: tuple[Adapted, Factors],
        tape: Tape,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.whose, ctx.tape = whose, tape
        return out.view_as(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        layer, factors = ctx.whose
        ctx.tape.collector.receive_blocks(layer, factors, x, grad)
        return grad, None, None, None, None


@contextmanager
def _watched(layer: LoraLayer, tape: Tape) -> Iterator[None]:
    """Take a layer's factors while its own code runs."""
    patches = []
    for module, factors in layer.watched():

        def watched(patch: Patch, x: Tensor, factors: Factors = factors) -> Any:
            # Within the module's call: next to the product itself, whatever hooks there are.
            whose = (layer, factors)
            return _Watched.apply(patch.own(x), tape.anchor, x.detach(), whose, tape)  # type: ignore[no-untyped-call]

        patches.append(Patch(watched, module))
    with layer.detached(), _in_place(patches):
        yield


@contextmanager
def _in_place(patches: list[Patch]) -> Iterator[None]:
    """Within it all patches are set."""
    try:
        for patch in patches:
            patch.set()
        yield
    finally:
        for patch in patches:
            patch.remove()


class _FusedLayer(torch.autograd.Function):
    """A decoder layer as one node of the graph, whose backward makes no weight gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, run: tuple[DecoderLayer, Packed], tape: Tape
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
        collector = ctx.tape.collector
        grad = ctx.run.backward(
            lambda use: use.emit(collector), delta.contiguous(), ctx.needs_input_grad[0]
        )
        return grad, None, None, None


@contextmanager
def evaluating(model: nn.Module, layout: Layout) -> Iterator[None]:
    """Put the model in evaluation mode and its LoRA matrices where autograd sees them, for a while.

    Raises:
        UnsupportedLayerError: A layer is not in the state that it needs.
    """
    layout.check_state(model)
    training = [module for module in modules_of(model) if module.training]
    frozen = [p for p in layout.parameters() if not p.requires_grad and not p.is_inference()]
    try:
        for module in training:
            module.training = False
        for parameter in frozen:
            parameter.requires_grad_(True)
        # Gradients are the point: a caller's no_grad or inference_mode must not switch them off.
        with unpacked(model), torch.inference_mode(False):  # which ends no_grad as well
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module in training:
            module.training = True


@contextmanager
def replaced(layout: Layout, forward: Callable[..., Any]) -> Iterator[None]:
    """Let every LoRA layer compute `forward(layer, own forward, x, …)`."""
    patches = []
    for layer in layout.layers:

        def call(patch: Patch, *args: Any, layer: Adapted = layer, **kwargs: Any) -> Any:
            return forward(layer, patch.own, *args, **kwargs)

        patches.append(Patch(call, layer.module))
    with _in_place(patches):
        yield


@contextmanager
def differentiable(layout: Layout, theta: Tensor) -> Iterator[None]:
    """Let the model's own code compute with the LoRA parameters `theta` [d], differentiably."""
    for layer in layout.layers:
        layer.check_parameters()
    before = [
        (owner, key, block, weight)
        for layer in layout.layers
        for block, (owner, key), weight in zip(
            layer.blocks, layer.places(), layer.weights, strict=True
        )
    ]
    try:
        for owner, key, block, weight in before:
            found = block.of(theta).view_as(weight).to(weight.dtype)
            owner._parameters[key] = found  # type: ignore[assignment]
        # The fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for owner, key, _, weight in before:
            owner._parameters[key] = weight
