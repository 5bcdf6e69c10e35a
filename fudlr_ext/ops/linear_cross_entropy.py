"""A head and its cross-entropy over a vocabulary, without the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.ops._autograd import register, register_last
from fudlr_ext.ops._devices import same_device


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return log Σ_v exp(h · w_v) − h · w_target of every row; no m × V matrix exists.

    Logits live for 128 rows and 240 words at a time, in one pass over the vocabulary forward and
    one backward, which computes them again. A row's loss depends on that row alone.
    Differentiable once, in hidden and weight.

    Args:
        hidden: h [m, d]; float64 where weight is, else float32.
        weight: W [V, d], V > 0, the head's; float32, float64 or bfloat16, or float16 on a GPU; any
            strides.
        targets: int64 [m], rows of weight, or −100: such a row has loss 0 and no gradient.

    Returns:
        The losses [m], in the dtype of hidden.

    Raises:
        ValueError: Shapes, dtypes, devices or targets that do not fit.
    """
    same_device("linear_cross_entropy", hidden=hidden, weight=weight, targets=targets)
    loss: Tensor = torch.ops.fudlr.linear_cross_entropy(hidden, weight, targets)[0]
    return loss


def _fake(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape[0]), hidden.new_empty(hidden.shape[0])


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    hidden, weight, targets, lse = ctx.saved_tensors
    need = ctx.needs_input_grad[:2]
    found = torch.ops.fudlr_grad.linear_cross_entropy_backward(
        hidden, weight, targets, lse, grad, *need
    )
    return *(x if wanted else None for x, wanted in zip(found, need, strict=True)), None


def _fake_backward(
    hidden: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, grad: Tensor, *need: bool
) -> tuple[Tensor, Tensor]:
    like = zip((hidden, weight), need, strict=True)
    to_hidden, to_weight = (x.new_empty(x.shape if needed else (0, 0)) for x, needed in like)
    return to_hidden, to_weight


register("fudlr::linear_cross_entropy", _fake, _backward, _setup)
register_last(
    "fudlr_grad::linear_cross_entropy_backward",
    _fake_backward,
    "a head's cross-entropy",
    "Take it from logits: torch.nn.functional.cross_entropy(hidden @ weight.t(), targets)",
)
