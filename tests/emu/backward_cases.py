"""Arguments of the backward ops of catalogues and heads, and the sizes of their results' terms."""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr_ext.testing import OpCase
from fudlr_ext.testing.catalogue import CatalogueShape, softmax_sizes


def _cotangents(*results: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in results
    ]


def _mean_backward(
    case: OpCase, shape: object, dtype: torch.dtype, below: float | None = None
) -> tuple:
    """below: So many times farther below 0 than they would be above it lie all scores."""
    users, items, values, scale, *seen = case.make(shape, dtype)
    if below is not None:
        users, items = users.abs() * below, -items.abs()
    taken = items.float() if items.dtype == torch.float16 else items
    mean, lse = torch.ops.fudlr.catalogue_mean(users, taken, values, scale, *seen)
    needs = (True, True, True)
    return users, items, values, scale, *seen, mean, lse, *_cotangents(mean, lse), *needs


def _mean_backward_sizes(
    users: Tensor, items: Tensor, values: Tensor, scale: float, *rest: Tensor
) -> tuple[Tensor, ...]:
    *seen, mean, lse, to_mean, to_lse, _, _, _ = rest
    p, terms, _ = softmax_sizes(users, items, scale, seen)
    p = p * (1 + terms + lse.abs()[:, None])
    shift = (to_mean * mean).abs().sum(1) + to_lse.abs()
    slopes = abs(scale) * p * (to_mean.abs() @ values.abs().t() + shift[:, None])
    return slopes @ items.abs(), slopes.t() @ users.abs(), p.t() @ to_mean.abs()


def _cross_entropy_backward(case: OpCase, shape: object, dtype: torch.dtype) -> tuple:
    hidden, weight, targets = case.make(shape, dtype)
    # Of nobody's own float32 scores, whose errors would cancel in one kernel alone.
    _, lse = torch.ops.fudlr.linear_cross_entropy(hidden.double(), weight.double(), targets)
    lse = lse.to(hidden.dtype)
    return hidden, weight, targets, lse, *_cotangents(lse), True, True


def _cross_entropy_backward_sizes(
    hidden: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, grad: Tensor, *needs: bool
) -> tuple[Tensor, ...]:
    p, terms, _ = softmax_sizes(hidden, weight, 1.0, (None, None))
    slopes = p * (1 + terms + lse.abs()[:, None])
    rows = (targets >= 0).nonzero()[:, 0]
    slopes[rows, targets[rows]] += 1
    slopes *= ((targets >= 0) * grad.abs())[:, None]
    return slopes @ weight.abs(), slopes.t() @ hidden.abs()


# Of an op with a row: its backward, what makes that one's arguments, their terms' sizes, and cases
# beside the row's.
BACKWARDS = {
    "catalogue_mean": (
        "catalogue_mean_backward",
        _mean_backward,
        _mean_backward_sizes,
        [(CatalogueShape(3, 5, 4), {"below": 200})],
    ),
    "linear_cross_entropy": (
        "linear_cross_entropy_backward",
        _cross_entropy_backward,
        _cross_entropy_backward_sizes,
        [],
    ),
}
