"""Products with stored rows G [n, p]: G Vᵀ, W G, and both at once.

All functions take the rows first and their scales last:

    rows: G [n, p]; float32, float64, bfloat16 or int8 with scales, or float16 on a GPU; any
        strides.
    scales: float32 [n, ⌈p/128⌉] for int8 rows: number (i, c) is rows[i, c] times
        scales[i, c // 128].

Vectors and weights are float64 where rows are, else float32. Shapes, dtypes or devices that do not
fit are a ValueError. Sums over rows are formed in that dtype over 240 rows and in float64 across
them, in the rows' order whatever the number of threads. Nothing is differentiable in the rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.ops._autograd import register, same_device


def row_dots(rows: Tensor, vectors: Tensor, scales: Tensor | None = None) -> Tensor:
    """Return G Vᵀ for vectors [k, p], as [n, k] in their dtype.

    Each row is read once and turned into numbers in registers; its products depend on that row
    alone. Differentiable in vectors.
    """
    same_device("row_dots", rows=rows, vectors=vectors, scales=scales)
    return torch.ops.fudlr.row_dots(rows, vectors, scales)


def _dots_fake(rows: Tensor, vectors: Tensor, scales: Tensor | None = None) -> Tensor:
    return vectors.new_empty(rows.shape[0], vectors.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, lines, scales = inputs
    ctx.save_for_backward(rows, scales)
    ctx.dtype = lines.dtype


def _dots_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, scales = ctx.saved_tensors
    return None, torch.ops.fudlr.row_sums(rows, grad.t(), scales).to(ctx.dtype), None


register("fudlr::row_dots", _dots_fake, _dots_backward, _save)


def row_sums(rows: Tensor, weights: Tensor, scales: Tensor | None = None) -> Tensor:
    """Return W G for weights [w, n], as [w, p] in float64, each row read once.

    Differentiable in weights.
    """
    same_device("row_sums", rows=rows, weights=weights, scales=scales)
    return torch.ops.fudlr.row_sums(rows, weights, scales)


def _sums_fake(rows: Tensor, weights: Tensor, scales: Tensor | None = None) -> Tensor:
    return weights.new_empty(weights.shape[0], rows.shape[1], dtype=torch.float64)


def _sums_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, scales = ctx.saved_tensors
    return None, torch.ops.fudlr.row_dots(rows, grad.to(ctx.dtype), scales).t(), None


register("fudlr::row_sums", _sums_fake, _sums_backward, _save)


def row_gram(
    rows: Tensor,
    vectors: Tensor,
    weights: Tensor | None = None,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return G Vᵀ [n, k], and V Gᵀ diag(w) G [k, p] in float64: an empirical Fisher's products.

    Memory sees every row once. Weights [n] are ones where None. Differentiable in vectors and
    weights.
    """
    same_device("row_gram", rows=rows, vectors=vectors, weights=weights, scales=scales)
    return torch.ops.fudlr.row_gram(rows, vectors, weights, scales)


def _gram_fake(
    rows: Tensor, vectors: Tensor, weights: Tensor | None = None, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    dots = vectors.new_empty(rows.shape[0], vectors.shape[0])
    return dots, torch.empty_like(vectors, dtype=torch.float64)


def _gram_save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    rows, _, weights, scales = inputs
    ctx.save_for_backward(rows, scales, weights, output[0])


def _gram_backward(ctx: Any, to_dots: Tensor, to_sums: Tensor) -> tuple[Tensor | None, ...]:
    rows, scales, weights, dots = ctx.saved_tensors
    across = torch.ops.fudlr.row_dots(rows, to_sums.to(dots.dtype), scales)
    weighted = across if weights is None else across * weights[:, None]
    both = (to_dots + weighted).t()
    to_vectors = torch.ops.fudlr.row_sums(rows, both, scales).to(dots.dtype)
    to_weights = None if weights is None else (dots * across).sum(1)
    return None, to_vectors, to_weights, None


register("fudlr::row_gram", _gram_fake, _gram_backward, _gram_save)
