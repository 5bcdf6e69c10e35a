"""Products with stored rows G [n, p]: float32, float64, bfloat16, or int8 with scales."""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_BLOCK = 128  # columns of an int8 row that share a scale


def decode(rows: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return G in `dtype`."""
    if scales is None:
        return rows.to(dtype)
    spread = scales.to(dtype).repeat_interleave(SCALE_BLOCK, 1)[:, : rows.shape[1]]
    return rows.to(dtype) * spread


def row_dots(rows: Tensor, vectors: Tensor, scales: Tensor | None = None) -> Tensor:
    """Return G Vᵀ for vectors [k, p], [n, k]."""
    return decode(rows, scales, vectors.dtype) @ vectors.t()


def row_sums(rows: Tensor, weights: Tensor, scales: Tensor | None = None) -> Tensor:
    """Return W G for weights [w, n], [w, p] in float64."""
    return (weights @ decode(rows, scales, weights.dtype)).double()


def row_gram(
    rows: Tensor,
    vectors: Tensor,
    weights: Tensor | None = None,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return G Vᵀ [n, k], and V Gᵀ diag(w) G [k, p] in float64."""
    dots = row_dots(rows, vectors, scales)
    weighted = dots if weights is None else dots * weights[:, None]
    return dots, row_sums(rows, weighted.t(), scales)
