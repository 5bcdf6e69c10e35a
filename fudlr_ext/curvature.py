"""Products with Jacobian, Hessian and Gauss-Newton matrices.

They are exact. Where the fused decoder layers serve, all vectors go through them together
(`tangents`), and automatic differentiation has the rest; elsewhere it has everything, and each
vector costs a pass over a graph that is built once a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fudlr_ext import decoder
from fudlr_ext.capture import differentiable
from fudlr_ext.collect import check_losses, no_gradient
from fudlr_ext.decoder_jvp import Recorder
from fudlr_ext.errors import EngineError
from fudlr_ext.layers import Layout

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
    """Return the inputs' gradients, zero where nothing hangs on them; the graph stays."""
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


class _Spine:
    """What the outputs of one forward pass hang on, and products from there on.

    That is θ itself, or, where the fused decoder layers ran, their last output: then the vectors
    go through these all at once, and only what is left of the model differentiates vector by
    vector.
    """

    def __init__(self, leaf: Tensor, recorder: Recorder | None) -> None:
        self.leaf, self.recorder = leaf, recorder

    def products(
        self, vectors: Tensor, delta: Tensor | None, inner: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return the products [k, d], with `inner` the product at the leaf.

        Args:
            vectors: [k, d].
            delta: The gradient at the leaf where the layers' own curvature counts (the Hessian).
            inner: A tangent of the leaf to the change of its cotangent.
        """
        if self.recorder is None:
            rows = [inner(vector) for vector in vectors]
            return torch.stack(rows) if rows else torch.zeros_like(vectors)
        if delta is not None:
            with torch.no_grad():
                self.recorder.descend(delta)
        size = max(1, DIRECTION_BYTES // max(self.recorder.bytes_each(), 1))
        parts = [self._together(part, inner) for part in vectors.split(size) if len(part)]
        return torch.cat(parts) if parts else torch.zeros_like(vectors)

    def _together(self, vectors: Tensor, inner: Callable[[Tensor], Tensor]) -> Tensor:
        assert self.recorder is not None
        k = len(vectors)
        with torch.no_grad():
            along = self.recorder.along(vectors)
        tangents = along.out.view(-1, k, along.out.shape[1])
        changes = torch.stack([inner(tangents[:, j]) for j in range(k)], 1)
        with torch.no_grad():
            return along.back(changes.detach().flatten(0, 1))


@contextmanager
def _spine(model: nn.Module, layout: Layout, theta: Tensor, fused: bool) -> Iterator[Recorder]:
    """Yield a recorder of the fused layers; where it stays empty, all is differentiable in θ."""
    layers = decoder.usable(model, layout) if fused else []
    recorder = Recorder(len(layers))
    inside = {id(part.lora) for layer in layers for part in layer.parts.values()}
    if layers and all(id(lora) in inside for lora in layout.layers):
        with decoder.replaced(model, layout, recorder.run), differentiable(model, layout, theta):
            yield recorder
    else:
        with differentiable(model, layout, theta):
            yield recorder


def _found(theta: Tensor, recorder: Recorder, outputs: tuple[Tensor, ...]) -> _Spine | None:
    """Return what the outputs hang on.

    None where a layer within is used by itself as well, or where some ran on their own code.
    """
    if not recorder.runs:
        return _Spine(theta, None)
    layers = {id(run.layer) for run in recorder.runs}
    live = [output.sum() for output in outputs if output.requires_grad]
    once = len(layers) == len(recorder.runs) == recorder.layers
    if once and live:
        others = recorder.leaves[:-1]
        found = (
            torch.autograd.grad(live, others, retain_graph=True, allow_unused=True)
            if others
            else ()
        )
        once = all(gradient is None for gradient in found)
    return _Spine(recorder.leaves[-1], recorder) if once else None


def hvp(
    model: nn.Module,
    layout: Layout,
    theta: Tensor,
    *,
    forward: Forward,
    loss: Loss,
    batch: Any,
    vectors: Tensor,
    fused: bool = True,
) -> Tensor:
    """Return ∇²(mean loss) v for vectors [k, d], [k, d] (Pearlmutter 1994)."""
    theta = theta.requires_grad_()
    with _spine(model, layout, theta, fused) as recorder:
        losses = loss(forward(model, batch), batch)
        check_losses(losses, layout)
        spine = _found(theta, recorder, (losses,))
        if spine is not None:
            leaf = spine.leaf
            (gradient,) = torch.autograd.grad(losses.mean(), leaf, create_graph=True)
            return spine.products(
                vectors, gradient.detach(), lambda v: _gradients((gradient,), (leaf,), (v,))[0]
            )
    return hvp(
        model, layout, theta.detach(),
        forward=forward, loss=loss, batch=batch, vectors=vectors, fused=False,
    )  # fmt: skip


def ggn_vp(
    model: nn.Module,
    layout: Layout,
    theta: Tensor,
    *,
    forward: Forward,
    loss: Loss,
    batch: Any,
    vectors: Tensor,
    fused: bool = True,
) -> Tensor:
    """Return Jᵀ H J v for vectors [k, d], [k, d], with H the mean loss's Hessian in the outputs.

    From the leaf on, J v comes from differentiating Jᵀ c, which is linear in c, once more.
    """
    theta = theta.requires_grad_()
    with _spine(model, layout, theta, fused) as recorder:
        everything = as_tuple(forward(model, batch))
        varying = [i for i, tensor in enumerate(everything) if tensor.requires_grad]
        outputs = tuple(everything[i] for i in varying)
        if not outputs:
            raise no_gradient([layer.name for layer in layout.layers], layout)
        at = tuple(tensor.detach().requires_grad_() for tensor in outputs)
        given = list(everything)
        for i, tensor in zip(varying, at, strict=True):
            given[i] = tensor
        spine = _found(theta, recorder, outputs)
        if spine is not None:
            leaf = spine.leaf
            losses = loss(tuple(given) if len(given) > 1 else given[0], batch)
            check_losses(losses, layout)
            slopes = torch.autograd.grad(losses.mean(), at, create_graph=True)
            cotangents = tuple(torch.zeros_like(tensor, requires_grad=True) for tensor in outputs)
            (pulled,) = _gradients(outputs, (leaf,), cotangents, create_graph=True)

            def product(v: Tensor) -> Tensor:
                forward_v = _gradients((pulled,), cotangents, (v,))
                curved = _gradients(slopes, at, forward_v)
                return _gradients(outputs, (leaf,), curved)[0]

            return spine.products(vectors, None, product)
    return ggn_vp(
        model, layout, theta.detach(),
        forward=forward, loss=loss, batch=batch, vectors=vectors, fused=False,
    )  # fmt: skip


def taylor_gradient(
    model: nn.Module,
    layout: Layout,
    theta: Tensor,
    *,
    forward: Forward,
    loss: Loss,
    batch: Any,
    path: Tensor,
    removed: Tensor,
    order: int,
) -> Tensor:
    """Return how the gradient changes along a path, by derivatives at θ alone, [d].

    With L_t(u) = (1/n) Σ (1 − t removed_i) ℓ_i(u) and γ(t) = Σ_j path_j tʲ, it is the Taylor
    polynomial of ∇L_t(θ + γ(t)) in t at 0, of the given order and without its constant, at t = 1:

        Σ_{k=1}^{order} (1/k!) ∂_θ ∂_tᵏ L_t(θ + γ(t)) at t = 0

    by one backward pass for each order and one more; each costs about twice the one before.
    """
    theta = theta.requires_grad_()
    t = torch.zeros((), dtype=theta.dtype, device=theta.device, requires_grad=True)
    shift: Tensor = torch.zeros_like(path[0]) if len(path) else torch.zeros_like(theta)
    for coefficient in reversed(path.unbind()):
        shift = t * (coefficient + shift)
    with differentiable(model, layout, theta + shift):
        losses = loss(forward(model, batch), batch)
        check_losses(losses, layout)
        value = ((1 - t * removed.to(losses)) * losses).mean()
        total, factorial = torch.zeros_like(value), 1
        for k in range(1, order + 1):
            if not value.requires_grad:
                break  # a straight line in t, as without a path: no higher orders
            (found,) = torch.autograd.grad(
                value, t, create_graph=True, allow_unused=True, materialize_grads=True
            )
            value = found
            factorial *= k
            total = total + value / factorial
        (gradient,) = torch.autograd.grad(total, theta)
    return gradient
