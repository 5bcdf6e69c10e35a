"""Products with Jacobian, Hessian and Gauss-Newton matrices by automatic differentiation.

They are exact. Each vector costs a pass over a graph that is built once a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fudlr_ext.collect import check_losses, no_gradient
from fudlr_ext.errors import EngineError
from fudlr_ext.layers import Layout
from fudlr_ext.passes import differentiable

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


def _each(vectors: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
    rows = [product(vector) for vector in vectors]
    return torch.stack(rows) if rows else torch.zeros_like(vectors)


def hvp(
    model: nn.Module,
    layout: Layout,
    theta: Tensor,
    *,
    forward: Forward,
    loss: Loss,
    batch: Any,
    vectors: Tensor,
) -> Tensor:
    """Return ∇²(mean loss) v for vectors [k, d], [k, d] (Pearlmutter 1994, by double backward)."""
    theta = theta.requires_grad_()
    with differentiable(model, layout, theta):
        losses = loss(forward(model, batch), batch)
        check_losses(losses, layout)
        (gradient,) = torch.autograd.grad(losses.mean(), theta, create_graph=True)
        return _each(vectors, lambda v: _gradients((gradient,), (theta,), (v,))[0])


def ggn_vp(
    model: nn.Module,
    layout: Layout,
    theta: Tensor,
    *,
    forward: Forward,
    loss: Loss,
    batch: Any,
    vectors: Tensor,
) -> Tensor:
    """Return Jᵀ H J v for vectors [k, d], [k, d], with H the mean loss's Hessian in the outputs.

    J v comes from differentiating Jᵀ c, which is linear in c, once more.
    """
    theta = theta.requires_grad_()
    with differentiable(model, layout, theta):
        everything = as_tuple(forward(model, batch))
        varying = [i for i, tensor in enumerate(everything) if tensor.requires_grad]
        outputs = tuple(everything[i] for i in varying)
        if not outputs:
            raise no_gradient([layer.name for layer in layout.layers], layout)
        at = tuple(tensor.detach().requires_grad_() for tensor in outputs)
        given = list(everything)
        for i, tensor in zip(varying, at, strict=True):
            given[i] = tensor
        losses = loss(tuple(given) if len(given) > 1 else given[0], batch)
        check_losses(losses, layout)
        slopes = torch.autograd.grad(losses.mean(), at, create_graph=True)
        cotangents = tuple(torch.zeros_like(tensor, requires_grad=True) for tensor in outputs)
        (pulled,) = _gradients(outputs, (theta,), cotangents, create_graph=True)

        def product(v: Tensor) -> Tensor:
            forward_v = _gradients((pulled,), cotangents, (v,))
            curved = _gradients(slopes, at, forward_v)
            return _gradients(outputs, (theta,), curved)[0]

        return _each(vectors, product)


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
