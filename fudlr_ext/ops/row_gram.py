"""Products of stored rows with vectors, and back: what an empirical Fisher product is made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.ops._autograd import register
from fudlr_ext.ops._devices import same_device


def row_gram(
    rows: Tensor,
    vectors: Tensor,
    weights: Tensor | None = None,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return G Vᵀ and V Gᵀ diag(w) G for stored rows G; memory sees every row once.

    Sums are formed in the dtype of vectors over 240 rows and in float64 across them, in the rows'
    order whatever the number of threads. Differentiable in vectors and weights.

    Args:
        rows: G [n, p]; float32, float64, bfloat16 or int8 with scales, or float16 on a GPU; any
            strides.
        vectors: V [k, p], float64 where rows are, else float32.
        weights: w [n], of the same dtype; None: ones.
        scales: float32 [n, ⌈p/128⌉] for int8 rows; see `row_dots`.

    Returns:
        The products [n, k] in the dtype of vectors, and the sums [k, p] in float64.

    Raises:
        ValueError: Shapes, dtypes or devices that do not fit.
    """
    same_device("row_gram", rows=rows, vectors=vectors, weights=weights, scales=scales)
    return torch.ops.fudlr.row_gram(rows, vectors, weights, scales)


def _fake(
    rows: Tensor,
    vectors: Tensor,
    weights: Tensor | None = None,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dots = vectors.new_empty(rows.shape[0], vectors.shape[0])
    return dots, torch.empty_like(vectors, dtype=torch.float64)


def _setup(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    rows, _, weights, scales = inputs
    ctx.save_for_backward(rows, scales, weights, output[0])


def _backward(ctx: Any, to_dots: Tensor, to_sums: Tensor) -> tuple[Tensor | None, ...]:
    rows, scales, weights, dots = ctx.saved_tensors
    across = torch.ops.fudlr.row_dots(rows, to_sums.to(dots.dtype), scales)
    weighted = across if weights is None else across * weights[:, None]
    both = (to_dots + weighted).t()
    to_vectors = torch.ops.fudlr.row_sums(rows, both, scales).to(dots.dtype)
    to_weights = None if weights is None else (dots * across).sum(1)
    return None, to_vectors, to_weights, None


register("fudlr::row_gram", _fake, _backward, _setup)
