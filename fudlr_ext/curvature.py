"""Products with Jacobian, Hessian and Gauss-Newton matrices.

They are exact. Where the fused decoder layers serve, all vectors go through them together
(`tangents`), and automatic differentiation has the rest; elsewhere it has everything, and each
vector costs a pass over a graph that is built once a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fudlr_ext.blocks import Adapted
from fudlr_ext.capture import differentiable, replaced
from fudlr_ext.collect import check_losses, no_gradient
from fudlr_ext.decoder_jvp import Along
from fudlr_ext.decoder_layer import DecoderLayer, Pass
from fudlr_ext.errors import EngineError
from fudlr_ext.fused_call import FusedCall
from fudlr_ext.layers import Layout
from fudlr_ext.packed import Packed

Forward = Callable[[nn.Module, Any], Any]
Loss = Callable[[Any, Any], Tensor]


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """Return the tensors of `outputs`, which may be one or a tuple of them."""
    tensors = (outputs,) if isinstance(outputs, Tensor) else outputs
    if not isinstance(tensors, tuple) or not all(isinstance(t, Tensor) for t in tensors):
        raise EngineError(
            "forward(model, batch) was to return a tensor or a tuple of tensors",
            f"it returned {type(outputs).__name__}",
            "Take the tensors out of it, for instance with `.logits`",
        )
    return tensors


def _gradients(
    outputs: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    cotangents: tuple[Tensor, ...],
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Return the inputs' gradients, zero where nothing depends on them; the graph stays."""
    live = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not live:
        return tuple(torch.zeros_like(tensor) for tensor in inputs)
    return torch.autograd.grad(
        [output for output, _ in live],
        inputs,
        [cotangent for _, cotangent in live],
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )


DIRECTION_BYTES = 2 * 2**30
"""Memory that the tangents of one group of vectors may take; more vectors go in groups."""


class Recorder:
    """The decoder layers of one forward pass, each from a leaf of its own, to go along and back.

    Args:
        call: What lets them have the decoder's calls.

    Attributes:
        layers: How many there are.
        runs: What each of them computed that ran.
        leaves: Each layer's output, cut off from the graph below; the last one is what the rest of
            the model depends on.
    """

    def __init__(self, call: FusedCall) -> None:
        self.call, self.layers = call, len(call.stack.layers)
        self.runs: list[Pass] = []
        self.leaves: list[Tensor] = []

    def run(self, layer: DecoderLayer, packed: Packed, x: Tensor) -> Tensor:
        """Compute one layer."""
        self.runs.append(Pass(layer, packed, x.detach()))
        self.leaves.append(self.runs[-1].out.detach().requires_grad_())
        return self.leaves[-1]

    def adapted(self) -> list[Pass]:
        """Return what depends on the adapter: the lowest layer that it has a part in, and above."""
        first = next(i for i, run in enumerate(self.runs) if run.layer.adapted)
        return self.runs[first:]

    def descend(self, delta: Tensor) -> None:
        """Go back with the last output's cotangent [T, d], which second derivatives want."""
        runs = self.adapted()
        grad: Tensor | None = delta.contiguous()
        for run in reversed(runs):
            assert grad is not None
            grad = run.keep(grad, run is not runs[0])

    def bytes_each(self) -> int:
        """Memory that one direction takes, about."""
        kept = 0
        for run in self.runs:
            tensors = (run.x, run.q, run.k, run.v, run.x2, run.gu, run.out)
            kept += sum(tensor.numel() for tensor in tensors) * run.x.element_size()
        return kept

    def along(self, vectors: Tensor) -> Along:
        """Take the tangents for vectors [k, d]; after `descend`, for second derivatives."""
        return Along(self.adapted(), vectors)


def _products(
    recorder: Recorder | None,
    vectors: Tensor,
    delta: Tensor | None,
    inner: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the products [k, d], with `inner` the product at what the outputs depend on.

    Where the fused decoder layers ran, that is their last output: the vectors go through these all
    at once, and only what is left of the model differentiates vector by vector.

    Args:
        recorder: The fused layers; None where the outputs depend on θ itself.
        vectors: [k, d].
        delta: The gradient at that output where the layers' own curvature counts (the Hessian).
        inner: A tangent there to the change of its cotangent.
    """
    if recorder is None:
        rows = [inner(vector) for vector in vectors]
        return torch.stack(rows) if rows else torch.zeros_like(vectors)
    if delta is not None:
        with torch.no_grad():
            recorder.descend(delta)
    found = []
    for along, tangents in _along(recorder, vectors):
        changes = torch.stack([inner(tangent) for tangent in tangents], 1)
        with torch.no_grad():
            found.append(along.back(changes.detach().flatten(0, 1)))
    return torch.cat(found) if found else torch.zeros_like(vectors)


def _along(recorder: Recorder, vectors: Tensor) -> Iterator[tuple[Along, list[Tensor]]]:
    """Yield groups of vectors that went through the fused layers, with each one's tangent there."""
    size = max(1, DIRECTION_BYTES // max(recorder.bytes_each(), 1))
    for part in (each for each in vectors.split(size) if len(each)):
        with torch.no_grad():
            along = recorder.along(part)
        tangents = along.out.view(-1, len(part), along.out.shape[1])
        yield along, list(tangents.unbind(1))


def attempt(
    layout: Layout,
    theta: Tensor,
    call: FusedCall | None,
    product: Callable[[Tensor, Recorder | None], Tensor],
) -> Tensor:
    """Return `product` of θ and a recorder of the fused layers, or of None with all of it in θ.

    Fused layers serve where every adapted layer lies within them, and nothing of it is used in
    another way.

    Raises:
        UnservedError: The fused layers were asked for something else.
    """
    if call is None:
        with differentiable(layout, theta):
            return product(theta, None)
    recorder = Recorder(call)

    def elsewhere(layer: Adapted, own: Any, *args: Any, **kwargs: Any) -> Any:
        reason = call.reasons[0] if call.reasons else f"{layer.name} runs outside of fused layers"
        raise call.unserved(reason)

    with call.installed(recorder.run), replaced(layout, elsewhere), sdpa_kernel(SDPBackend.MATH):
        return product(theta, recorder)


def _leaf(
    layout: Layout, theta: Tensor, recorder: Recorder | None, outputs: tuple[Tensor, ...]
) -> Tensor:
    """Return what the outputs depend on: θ, or the last output of the fused layers."""
    if recorder is None:
        return theta
    matrices = [p for p in layout.parameters() if p.requires_grad]
    call, live = recorder.call, [each.sum() for each in outputs if each.requires_grad]
    if call.broken or len(recorder.runs) != recorder.layers:
        raise call.unserved(call.broken or "the decoder does not run exactly once")
    by_itself = torch.autograd.grad(live, matrices, retain_graph=True, allow_unused=True)
    if any(gradient is not None for gradient in by_itself):
        raise call.unserved("a LoRA matrix is used by itself")
    return recorder.leaves[-1]


ModelAndLoss = tuple[Callable[[], Any], Callable[[Any], Tensor]]
"""Makes the outputs, and the losses [n] of outputs."""


def hvp(
    layout: Layout,
    theta: Tensor,
    recorder: Recorder | None,
    model_and_loss: ModelAndLoss,
    vectors: Tensor,
) -> Tensor:
    """Return ∇²(mean loss) v for vectors [k, d], [k, d] (Pearlmutter 1994)."""
    outputs_of, loss_of = model_and_loss
    losses = loss_of(outputs_of())
    check_losses(losses, layout)
    leaf = _leaf(layout, theta, recorder, (losses,))
    (gradient,) = torch.autograd.grad(losses.mean(), leaf, create_graph=True)
    return _products(
        recorder, vectors, gradient.detach(), lambda v: _gradients((gradient,), (leaf,), (v,))[0]
    )


@dataclass(frozen=True)
class _Curved:
    """The outputs' first derivative and the mean loss's second derivative in them, by the leaf.

    Attributes:
        leaf: What the outputs depend on; see `_leaf`.
        outputs: Those that do.
        tangents: J v for a tangent v at the leaf: Jᵀ c, which is linear in c, differentiated.
        curved: H t for the outputs' tangents t.
    """

    leaf: Tensor
    outputs: tuple[Tensor, ...]
    tangents: Callable[[Tensor], tuple[Tensor, ...]]
    curved: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]

    @classmethod
    def of(
        cls, layout: Layout, theta: Tensor, recorder: Recorder | None, parts: ModelAndLoss
    ) -> _Curved:
        """Run the model, and look what depends on what."""
        outputs_of, loss_of = parts
        everything = as_tuple(outputs_of())
        varying = [i for i, tensor in enumerate(everything) if tensor.requires_grad]
        outputs = tuple(everything[i] for i in varying)
        if not outputs:
            raise no_gradient([layer.name for layer in layout.layers], layout)
        at = tuple(tensor.detach().requires_grad_() for tensor in outputs)
        given = list(everything)
        for i, tensor in zip(varying, at, strict=True):
            given[i] = tensor
        leaf = _leaf(layout, theta, recorder, outputs)
        losses = loss_of(tuple(given) if len(given) > 1 else given[0])
        check_losses(losses, layout)
        gradients = torch.autograd.grad(losses.mean(), at, create_graph=True)
        if recorder is not None:  # goes back once, so that a use of padding is noticed
            _gradients(outputs, (leaf,), tuple(each.detach() for each in gradients))
        cotangents = tuple(torch.zeros_like(tensor, requires_grad=True) for tensor in outputs)
        (pulled,) = _gradients(outputs, (leaf,), cotangents, create_graph=True)
        return cls(
            leaf,
            outputs,
            lambda v: _gradients((pulled,), cotangents, (v,)),
            lambda tangents: _gradients(gradients, at, tangents),
        )


def ggn_vp(
    layout: Layout,
    theta: Tensor,
    recorder: Recorder | None,
    model_and_loss: ModelAndLoss,
    vectors: Tensor,
) -> Tensor:
    """Return Jᵀ H J v for vectors [k, d], [k, d], with H the mean loss's Hessian in the outputs."""
    made = _Curved.of(layout, theta, recorder, model_and_loss)

    def product(v: Tensor) -> Tensor:
        return _gradients(made.outputs, (made.leaf,), made.curved(made.tangents(v)))[0]

    return _products(recorder, vectors, None, product)


def ggn_form(
    layout: Layout,
    theta: Tensor,
    recorder: Recorder | None,
    model_and_loss: ModelAndLoss,
    vectors: Tensor,
) -> Tensor:
    """Return vᵀ Jᵀ H J v for vectors [k, d], [k], without a backward pass through the layers."""
    made = _Curved.of(layout, theta, recorder, model_and_loss)

    def form(v: Tensor) -> Tensor:
        tangents = made.tangents(v)
        pairs = zip(tangents, made.curved(tangents), strict=True)
        return sum(((a * b).sum() for a, b in pairs), start=vectors.new_zeros(()))

    if recorder is None:
        found = [form(vector) for vector in vectors]
    else:
        found = [form(each) for _, tangents in _along(recorder, vectors) for each in tangents]
    return torch.stack(found).detach() if found else vectors.new_zeros(0)
