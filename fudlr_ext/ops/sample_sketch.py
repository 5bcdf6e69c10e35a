"""Projected per-sample gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.ops._autograd import register
from fudlr_ext.ops._devices import same_device
from fudlr_ext.ops._samples import pack, result_dtype, spread


def sample_sketch(
    left: Tensor,
    right: Tensor,
    project_left: Tensor | None = None,
    project_right: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """Return P_l G_i P_rᵀ of every sample's gradient G_i = Σ_t left_t right_tᵀ.

    It is Σ_t (P_l left_t)(P_r right_t)ᵀ: the projections are applied to the factors, and the
    gradients never exist. Differentiable in left, right and the projections.

    Args:
        left: Packed [T, a], or padded [n, t, a]; float32, float64 or bfloat16, or float16
            on a GPU; any strides.
        right: Packed [T, b], or padded [n, t, b], of the same dtype.
        project_left: P_l [q, a], of the same dtype, but float32 for input of 16 bits; None leaves
            that side as it is.
        project_right: P_r [r, b]; likewise.
        offsets: int64 [n + 1]; sample i has the rows offsets[i] to offsets[i + 1] of packed input,
            or the first offsets[i + 1] - offsets[i] positions of padded input. None: all of them.

    Returns:
        The sketches [n, q or a, r or b], in float32 for input of 16 bits.

    Raises:
        ValueError: Shapes, dtypes, devices or offsets that do not fit.
    """
    same_device("sample_sketch", left=left, project_left=project_left, project_right=project_right)
    left, right, offsets = pack("sample_sketch", left, right, offsets)
    return torch.ops.fudlr.sample_sketch(left, right, project_left, project_right, offsets)


def _fake(
    left: Tensor,
    right: Tensor,
    project_left: Tensor | None,
    project_right: Tensor | None,
    offsets: Tensor,
) -> Tensor:
    rows = left.shape[1] if project_left is None else project_left.shape[0]
    columns = right.shape[1] if project_right is None else project_right.shape[0]
    shape = (offsets.shape[0] - 1, rows, columns)
    return left.new_empty(shape, dtype=result_dtype(left.dtype))


def _setup(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _short(rows: Tensor, projection: Tensor | None, dtype: torch.dtype) -> Tensor:
    rows = rows.to(dtype)
    return rows if projection is None else rows @ projection.t()


def _long(
    rows: Tensor, projection: Tensor | None, gradient: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of a factor and of its projection, from that of the projected rows."""
    if projection is None:
        return gradient.to(rows.dtype), None
    return (gradient @ projection).to(rows.dtype), gradient.t() @ rows.to(gradient.dtype)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    left, right, project_left, project_right, offsets = ctx.saved_tensors
    at = spread(grad, offsets, left.shape[0])
    to_left = torch.einsum("tqr,tr->tq", at, _short(right, project_right, grad.dtype))
    to_right = torch.einsum("tqr,tq->tr", at, _short(left, project_left, grad.dtype))
    to_left, to_project_left = _long(left, project_left, to_left)
    to_right, to_project_right = _long(right, project_right, to_right)
    return to_left, to_right, to_project_left, to_project_right, None


register("fudlr::sample_sketch", _fake, _backward, _setup)
