"""Per-sample gradients of a matrix: rows, products with vectors, weighted sums, sketches.

For W [a, b] used as y = x Wᵀ, sample i's gradient is G_i = Σ_t left_t right_tᵀ over its positions,
with left = ∂ℓ/∂y and right = x (Goodfellow 2015, "Efficient per-example gradient computations").
All functions take both factors and where each sample's positions begin:

    left: Packed [T, a], or padded [n, t, a]; float32, float64 or bfloat16, or float16 on a GPU; any
        strides.
    right: Packed [T, b], or padded [n, t, b], of the same dtype.
    offsets: int64 [n + 1]; sample i has the rows offsets[i] to offsets[i + 1] of packed input, or
        the first offsets[i + 1] - offsets[i] positions of padded input. None: all of them.

Results, vectors and weights have the same dtype, but float32 for input of 16 bits. Shapes, dtypes,
devices or offsets that do not fit are a ValueError.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.errors import EngineError
from fudlr_ext.ops._autograd import register, same_device


def _pack(
    op: str, left: Tensor, right: Tensor, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return left [T, a], right [T, b] and offsets [n + 1] for packed or padded samples.

    Padded samples [n, t, ...] without offsets are used whole; with offsets, sample i has
    `offsets[i + 1] - offsets[i]` positions, its first ones, and the others are left out.
    """
    same_device(op, left=left, right=right, offsets=offsets)
    if left.dim() == 2 and offsets is not None:
        return left, right, offsets
    if left.dim() != 3 or right.dim() != 3 or left.shape[:2] != right.shape[:2]:
        raise EngineError(
            f"{op}: left and right must be packed [T, a] and [T, b] with offsets [n + 1], or "
            "padded [n, t, a] and [n, t, b]",
            f"their shapes are {list(left.shape)} and {list(right.shape)}, and offsets are "
            f"{'missing' if offsets is None else 'given'}",
            "Reshape them, or give the offsets of packed samples",
        )
    n, t, a = left.shape
    if offsets is None:
        offsets = torch.arange(n + 1, device=left.device) * t
        return left.reshape(n * t, a), right.reshape(n * t, right.shape[2]), offsets
    lengths = offsets.diff()
    if lengths.shape != (n,):
        raise EngineError(
            f"{op}: offsets must be [n + 1] for {n} padded samples",
            f"their shape is {list(offsets.shape)}",
            "Give one more number than there are samples",
        )
    keep = torch.arange(t, device=left.device) < lengths[:, None]
    return left[keep], right[keep], offsets - offsets[:1]


def _result_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _spread(per_sample: Tensor, offsets: Tensor, positions: int) -> Tensor:
    """Return per_sample [n, ...] at every position [T, ...], and zero outside of all samples."""
    if per_sample.shape[0] == 0:
        return per_sample.new_zeros(positions, *per_sample.shape[1:])
    index = torch.arange(positions, device=offsets.device)
    sample = torch.searchsorted(offsets, index, right=True) - 1
    inside = (index >= offsets[0]) & (index < offsets[-1])
    mask = inside.reshape(-1, *[1] * (per_sample.dim() - 1))
    return per_sample[sample.where(inside, 0)] * mask


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def sample_grads(left: Tensor, right: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Return every sample's gradient G_i, [n, a, b].

    Differentiable in left and right; the backward takes T·a·b numbers of memory.
    """
    return torch.ops.fudlr.sample_grads(*_pack("sample_grads", left, right, offsets))


def _grads_fake(left: Tensor, right: Tensor, offsets: Tensor) -> Tensor:
    shape = (offsets.shape[0] - 1, left.shape[1], right.shape[1])
    return left.new_empty(shape, dtype=_result_dtype(left.dtype))


def _grads_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    left, right, offsets = ctx.saved_tensors
    at = _spread(grad, offsets, left.shape[0])
    to_left = torch.einsum("tab,tb->ta", at, right.to(grad.dtype)).to(left.dtype)
    to_right = torch.einsum("tab,ta->tb", at, left.to(grad.dtype)).to(right.dtype)
    return to_left, to_right, None


register("fudlr::sample_grads", _grads_fake, _grads_backward, _save_inputs)


def sample_dots(
    left: Tensor, right: Tensor, vectors: Tensor, offsets: Tensor | None = None
) -> Tensor:
    """Return ⟨G_i, V_j⟩ of every sample's gradient with vectors [k, a, b], as [n, k].

    The gradients are never stored: a tile of G_i lives in cache while it meets the same tile of
    all vectors, so the cost is about that of one T·a·b matrix product. Differentiable in left,
    right and vectors.
    """
    same_device("sample_dots", left=left, vectors=vectors)
    left, right, offsets = _pack("sample_dots", left, right, offsets)
    return torch.ops.fudlr.sample_dots(left, right, vectors, offsets)


def _dots_fake(left: Tensor, right: Tensor, vectors: Tensor, offsets: Tensor) -> Tensor:
    return vectors.new_empty(offsets.shape[0] - 1, vectors.shape[0])


def _dots_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    left, right, vectors, offsets = ctx.saved_tensors
    to_vectors = torch.ops.fudlr.grad_sum(left, right, grad.t(), offsets)
    return *_to_factors(left, right, grad, vectors, offsets), to_vectors, None


def _to_factors(
    left: Tensor, right: Tensor, weights: Tensor, matrices: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the factors' gradients of Σ_ij weights_ij ⟨G_i, matrices_j⟩."""
    at = _spread(weights, offsets, left.shape[0])
    to_left = torch.einsum("tk,kab,tb->ta", at, matrices, right.to(weights.dtype))
    to_right = torch.einsum("tk,kab,ta->tb", at, matrices, left.to(weights.dtype))
    return to_left.to(left.dtype), to_right.to(right.dtype)


register("fudlr::sample_dots", _dots_fake, _dots_backward, _save_inputs)


def grad_sum(left: Tensor, right: Tensor, weights: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Return Σ_i weights[w, i] G_i for weights [w, n], as [w, a, b].

    Each number is added up in one order, whatever the number of threads. Differentiable in left,
    right and weights.
    """
    same_device("grad_sum", left=left, weights=weights)
    left, right, offsets = _pack("grad_sum", left, right, offsets)
    return torch.ops.fudlr.grad_sum(left, right, weights, offsets)


def _sum_fake(left: Tensor, right: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    return weights.new_empty(weights.shape[0], left.shape[1], right.shape[1])


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    left, right, weights, offsets = ctx.saved_tensors
    to_weights = torch.ops.fudlr.sample_dots(left, right, grad, offsets).t()
    return *_to_factors(left, right, weights.t(), grad, offsets), to_weights, None


register("fudlr::grad_sum", _sum_fake, _sum_backward, _save_inputs)


def sample_sketch(
    left: Tensor,
    right: Tensor,
    project_left: Tensor | None = None,
    project_right: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """Return P_l G_i P_rᵀ for projections [q, a] and [r, b], as [n, q or a, r or b].

    It is Σ_t (P_l left_t)(P_r right_t)ᵀ: torch's products project the factors, and the gradients
    never exist. None leaves a side as it is. Differentiable in left, right and the projections.
    """
    op, sides = "sample_sketch", (project_left, project_right)
    same_device(op, left=left, project_left=project_left, project_right=project_right)
    left, right, offsets = _pack(op, left, right, offsets)
    kind = left.dtype if sides == (None, None) else _result_dtype(left.dtype)
    for rows, side in zip((left, right), sides, strict=True):
        if side is not None and (side.shape[1:] != rows.shape[1:] or side.dtype != kind):
            raise EngineError(
                f"{op}: a projection of shape [q, {rows.shape[1]}] and {kind} was expected",
                f"it is {list(side.shape)} and {side.dtype}",
                "Give it one column for each number of the factor that it projects",
            )
    left, right = (
        rows.to(kind) if side is None else rows.to(kind) @ side.t()
        for rows, side in zip((left, right), sides, strict=True)
    )
    return torch.ops.fudlr.sample_grads(left, right, offsets)
