"""Per-sample gradients of a matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.ops._autograd import register
from fudlr_ext.ops._samples import pack, result_dtype, spread


def sample_grads(left: Tensor, right: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Return every sample's gradient G_i = Σ_t left_t right_tᵀ of a matrix.

    For W [a, b] used as y = x Wᵀ, left is ∂ℓ/∂y and right is x (Goodfellow 2015, "Efficient
    per-example gradient computations"). Differentiable in left and right; the backward takes
    T·a·b numbers of memory.

    Args:
        left: Packed [T, a], or padded [n, t, a]; float32, float64 or bfloat16, or float16
            on a GPU; any strides.
        right: Packed [T, b], or padded [n, t, b], of the same dtype.
        offsets: int64 [n + 1]; sample i has the rows offsets[i] to offsets[i + 1] of packed input,
            or the first offsets[i + 1] - offsets[i] positions of padded input. None: all of them.

    Returns:
        G [n, a, b], in float32 for input of 16 bits, which is accumulated in float32.

    Raises:
        ValueError: Shapes, dtypes, devices or offsets that do not fit.
    """
    return torch.ops.fudlr.sample_grads(*pack("sample_grads", left, right, offsets))


def _fake(left: Tensor, right: Tensor, offsets: Tensor) -> Tensor:
    shape = (offsets.shape[0] - 1, left.shape[1], right.shape[1])
    return left.new_empty(shape, dtype=result_dtype(left.dtype))


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    left, right, offsets = ctx.saved_tensors
    at = spread(grad, offsets, left.shape[0])
    to_left = torch.einsum("tab,tb->ta", at, right.to(grad.dtype)).to(left.dtype)
    to_right = torch.einsum("tab,ta->tb", at, left.to(grad.dtype)).to(right.dtype)
    return to_left, to_right, None


register("fudlr::sample_grads", _fake, _backward, _setup)
