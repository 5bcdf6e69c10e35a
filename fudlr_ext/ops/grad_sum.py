"""Weighted sums of per-sample gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.ops._autograd import register
from fudlr_ext.ops._devices import same_device
from fudlr_ext.ops._samples import pack, spread


def grad_sum(left: Tensor, right: Tensor, weights: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Return Σ_i weights[w, i] G_i of the samples' gradients G_i = Σ_t left_t right_tᵀ.

    Each number is added up in one order, whatever the number of threads. Differentiable in left,
    right and weights.

    Args:
        left: Packed [T, a], or padded [n, t, a]; float32, float64 or bfloat16, or float16
            on a GPU; any strides.
        right: Packed [T, b], or padded [n, t, b], of the same dtype.
        weights: [w, n], of the same dtype, but float32 for input of 16 bits.
        offsets: int64 [n + 1]; sample i has the rows offsets[i] to offsets[i + 1] of packed input,
            or the first offsets[i + 1] - offsets[i] positions of padded input. None: all of them.

    Returns:
        The sums [w, a, b], in the dtype of weights.

    Raises:
        ValueError: Shapes, dtypes, devices or offsets that do not fit.
    """
    same_device("grad_sum", left=left, weights=weights)
    left, right, offsets = pack("grad_sum", left, right, offsets)
    return torch.ops.fudlr.grad_sum(left, right, weights, offsets)


def _fake(left: Tensor, right: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    return weights.new_empty(weights.shape[0], left.shape[1], right.shape[1])


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    left, right, weights, offsets = ctx.saved_tensors
    at = spread(weights.t(), offsets, left.shape[0])
    to_left = torch.einsum("tw,wab,tb->ta", at, grad, right.to(grad.dtype)).to(left.dtype)
    to_right = torch.einsum("tw,wab,ta->tb", at, grad, left.to(grad.dtype)).to(right.dtype)
    to_weights = torch.ops.fudlr.sample_dots(left, right, grad, offsets).t()
    return to_left, to_right, to_weights, None


register("fudlr::grad_sum", _fake, _backward, _setup)
