"""Weighted sums of stored rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.ops._autograd import register
from fudlr_ext.ops._devices import same_device


def row_sums(rows: Tensor, weights: Tensor, scales: Tensor | None = None) -> Tensor:
    """Return W G for stored rows G, each row read once.

    Sums are formed in the dtype of weights over 240 rows and in float64 across them, in the rows'
    order whatever the number of threads. Differentiable in weights.

    Args:
        rows: G [n, p]; float32, float64, bfloat16 or int8 with scales, or float16 on a GPU; any
            strides.
        weights: W [w, n], float64 where rows are, else float32.
        scales: float32 [n, ⌈p/128⌉] for int8 rows; see `row_dots`.

    Returns:
        The sums [w, p] in float64.

    Raises:
        ValueError: Shapes, dtypes or devices that do not fit.
    """
    same_device("row_sums", rows=rows, weights=weights, scales=scales)
    return torch.ops.fudlr.row_sums(rows, weights, scales)


def _fake(rows: Tensor, weights: Tensor, scales: Tensor | None = None) -> Tensor:
    return weights.new_empty(weights.shape[0], rows.shape[1], dtype=torch.float64)


def _setup(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    rows, weights, scales = inputs
    ctx.save_for_backward(rows, scales)
    assert weights is not None
    ctx.dtype = weights.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, scales = ctx.saved_tensors
    return None, torch.ops.fudlr.row_dots(rows, grad.to(ctx.dtype), scales).t(), None


register("fudlr::row_sums", _fake, _backward, _setup)
