"""Products of per-sample gradients with vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.ops._autograd import register
from fudlr_ext.ops._devices import same_device
from fudlr_ext.ops._samples import pack, spread


def sample_dots(
    left: Tensor, right: Tensor, vectors: Tensor, offsets: Tensor | None = None
) -> Tensor:
    """Return ⟨G_i, V_j⟩ of every sample's gradient G_i = Σ_t left_t right_tᵀ with every vector.

    The gradients are never stored: a tile of G_i lives in cache while it meets the same tile of
    all vectors, so the cost is about that of one T·a·b matrix product. Differentiable in left,
    right and vectors.

    Args:
        left: Packed [T, a], or padded [n, t, a]; float32, float64 or bfloat16, or float16
            on a GPU; any strides.
        right: Packed [T, b], or padded [n, t, b], of the same dtype.
        vectors: [k, a, b], of the same dtype, but float32 for input of 16 bits.
        offsets: int64 [n + 1]; sample i has the rows offsets[i] to offsets[i + 1] of packed input,
            or the first offsets[i + 1] - offsets[i] positions of padded input. None: all of them.

    Returns:
        The products [n, k], in the dtype of vectors.

    Raises:
        ValueError: Shapes, dtypes, devices or offsets that do not fit.
    """
    same_device("sample_dots", left=left, vectors=vectors)
    left, right, offsets = pack("sample_dots", left, right, offsets)
    return torch.ops.fudlr.sample_dots(left, right, vectors, offsets)


def _fake(left: Tensor, right: Tensor, vectors: Tensor, offsets: Tensor) -> Tensor:
    return vectors.new_empty(offsets.shape[0] - 1, vectors.shape[0])


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    left, right, vectors, offsets = ctx.saved_tensors
    at = spread(grad, offsets, left.shape[0])
    to_left = torch.einsum("tk,kab,tb->ta", at, vectors, right.to(grad.dtype)).to(left.dtype)
    to_right = torch.einsum("tk,kab,ta->tb", at, vectors, left.to(grad.dtype)).to(right.dtype)
    to_vectors = torch.ops.fudlr.grad_sum(left, right, grad.t(), offsets)
    return to_left, to_right, to_vectors, None


register("fudlr::sample_dots", _fake, _backward, _setup)
