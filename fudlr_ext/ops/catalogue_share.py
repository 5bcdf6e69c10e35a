"""Distributions over a catalogue, averaged over groups of users."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.ops._autograd import register
from fudlr_ext.ops._catalogue import Seen, split_seen
from fudlr_ext.ops._devices import same_device


def catalogue_share(
    users: Tensor,
    items: Tensor,
    weights: Tensor,
    scale: float = 1.0,
    seen: Seen = None,
) -> Tensor:
    """Return pᵀ W, p_i = softmax(scale · h_i Eᵀ) over unseen items: what each item gets of whom.

    With a column of W that is 1/size for the users of a group and 0 for others, it is that group's
    mean distribution. Two passes over the items, no n × M matrix. Differentiable once, in users,
    items and weights, at the price of `catalogue_mean` and its gradient.

    Args:
        users: h [n, w]; float64 where items are, else float32.
        items: E [M, w], M > 0; float32, float64 or bfloat16, or float16 on a GPU; any strides.
        weights: W [n, g], of the dtype of users.
        scale: What the scores are multiplied by: 1/τ.
        seen: Items without probability, for each user; see `catalogue_mean`.

    Returns:
        The sums [M, g], in the dtype of users; NaN where a user has seen every item.

    Raises:
        ValueError: Shapes, dtypes, devices or seen items that do not fit.
    """
    offsets, listed = split_seen(seen)
    same_device(
        "catalogue_share",
        users=users,
        items=items,
        weights=weights,
        seen_offsets=offsets,
        seen_items=listed,
    )
    return torch.ops.fudlr.catalogue_share(users, items, weights, scale, offsets, listed)


def _fake(users: Tensor, items: Tensor, weights: Tensor, *_: object) -> Tensor:
    return users.new_empty(items.shape[0], weights.shape[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    users, items, weights, ctx.scale, offsets, listed = inputs
    ctx.save_for_backward(users, items, weights, offsets, listed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Σ_mg grad_mg (pᵀ W)_mg = Σ_ig W_ig (p grad)_ig: an expectation of the values grad.
    users, items, weights, offsets, listed = ctx.saved_tensors
    given = (users, items, grad, ctx.scale, offsets, listed)
    to_weights, lse = torch.ops.fudlr.catalogue_mean(*given)
    need_users, need_items, need_weights = ctx.needs_input_grad[:3]
    to_users, to_items, _ = torch.ops.fudlr_grad.catalogue_mean_backward(
        *given, to_weights, lse, weights, torch.zeros_like(lse), need_users, need_items, False
    )
    return (
        to_users if need_users else None,
        to_items if need_items else None,
        to_weights if need_weights else None,
        None,
        None,
        None,
    )


register("fudlr::catalogue_share", _fake, _backward, _setup)
