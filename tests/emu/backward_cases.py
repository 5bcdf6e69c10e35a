"""Arguments of a catalogue's backward op, and the sizes of its results' terms."""

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
    to_mean, to_lse = _cotangents(mean, lse)
    shift = (to_mean * mean).sum(1) - to_lse
    return users, items, values, scale, *seen, lse, to_mean, shift, True, True, True


def _mean_backward_sizes(
    users: Tensor, items: Tensor, values: Tensor, scale: float, *rest: Tensor
) -> tuple[Tensor, ...]:
    *seen, lse, weights, shift, _, _, _ = rest
    p, terms, _ = softmax_sizes(users, items, scale, seen)
    p = p * (1 + terms + lse.abs()[:, None])
    slopes = abs(scale) * p * (weights.abs() @ values.abs().t() + shift.abs()[:, None])
    return slopes @ items.abs(), slopes.t() @ users.abs(), p.t() @ weights.abs()


# Of an op with a row: its backward, what makes that one's arguments, their terms' sizes, and cases
# beside the row's.
BACKWARDS = {
    "catalogue_mean": (
        "catalogue_mean_backward",
        _mean_backward,
        _mean_backward_sizes,
        [(CatalogueShape(3, 5, 4), {"below": 200})],
    ),
}
