"""Products of stored rows with vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.ops._autograd import register
from fudlr_ext.ops._devices import same_device


def row_dots(rows: Tensor, vectors: Tensor, scales: Tensor | None = None) -> Tensor:
    """Return G Vᵀ for stored rows G, each row read once and turned into numbers in registers.

    A row's products depend on that row alone. Differentiable in vectors.

    Args:
        rows: G [n, p]; float32, float64, bfloat16 or int8 with scales, or float16 on a GPU; any
            strides.
        vectors: V [k, p], float64 where rows are, else float32.
        scales: float32 [n, ⌈p/128⌉] for int8 rows: number (i, c) is rows[i, c] times
            scales[i, c // 128].

    Returns:
        The products [n, k], in the dtype of vectors.

    Raises:
        ValueError: Shapes, dtypes or devices that do not fit.
    """
    same_device("row_dots", rows=rows, vectors=vectors, scales=scales)
    return torch.ops.fudlr.row_dots(rows, vectors, scales)


def _fake(rows: Tensor, vectors: Tensor, scales: Tensor | None = None) -> Tensor:
    return vectors.new_empty(rows.shape[0], vectors.shape[0])


def _setup(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    rows, vectors, scales = inputs
    ctx.save_for_backward(rows, scales)
    assert vectors is not None
    ctx.dtype = vectors.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, scales = ctx.saved_tensors
    return None, torch.ops.fudlr.row_sums(rows, grad.t(), scales).to(ctx.dtype), None


register("fudlr::row_dots", _fake, _backward, _setup)
