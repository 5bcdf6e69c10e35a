"""Expectations under a softmax over a catalogue."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.ops._autograd import register
from fudlr_ext.ops._catalogue import Seen, split_seen
from fudlr_ext.ops._devices import same_device


def catalogue_mean(
    users: Tensor,
    items: Tensor,
    values: Tensor,
    scale: float = 1.0,
    seen: Seen = None,
) -> tuple[Tensor, Tensor]:
    """Return p C and log Σ exp of the scores, p_i = softmax(scale · h_i Eᵀ) over unseen items.

    No n × M matrix exists: scores live for 128 users and 240 items at a time, in one pass over the
    items forward, and one backward. A user's numbers depend on that user alone. Differentiable
    once, in users, items and values.

    Args:
        users: h [n, w]; float64 where items are, else float32.
        items: E [M, w], M > 0; float32, float64 or bfloat16, or float16 on a GPU; any strides.
        values: C [M, c], a few columns such as log-popularity or shares of groups; the dtype of
            users.
        scale: What the scores are multiplied by: 1/τ.
        seen: Offsets int64 [n + 1] and items int64 [S]; user i's items[offsets[i] : offsets[i + 1]]
            get no probability.

    Returns:
        The expectations [n, c] and the logarithms [n], in the dtype of users; NaN and −∞ for a user
        who has seen every item.

    Raises:
        ValueError: Shapes, dtypes, devices or seen items that do not fit.
    """
    offsets, listed = split_seen(seen)
    same_device(
        "catalogue_mean",
        users=users,
        items=items,
        values=values,
        seen_offsets=offsets,
        seen_items=listed,
    )
    return torch.ops.fudlr.catalogue_mean(users, items, values, scale, offsets, listed)


def _fake(users: Tensor, items: Tensor, values: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    n = users.shape[0]
    return users.new_empty(n, values.shape[1]), users.new_empty(n)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    users, items, values, ctx.scale, offsets, listed = inputs
    ctx.save_for_backward(users, items, values, offsets, listed, *output)


def _backward(ctx: Any, to_mean: Tensor, to_lse: Tensor) -> tuple[Tensor | None, ...]:
    users, items, values, offsets, listed, mean, lse = ctx.saved_tensors
    need = ctx.needs_input_grad[:3]
    found = torch.ops.fudlr_grad.catalogue_mean_backward(
        users, items, values, ctx.scale, offsets, listed, mean, lse, to_mean, to_lse, *need
    )
    given = (x if wanted else None for x, wanted in zip(found, need, strict=True))
    return *given, None, None, None


register("fudlr::catalogue_mean", _fake, _backward, _setup)
