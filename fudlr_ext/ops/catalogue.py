"""A softmax over a catalogue: p_i = softmax(scale · h_i Eᵀ) of users over items not seen.

No n × M matrix exists: scores live for 128 users and 240 items at a time. A user's numbers depend
on that user alone. All functions take:

    users: h [n, w]; float64 where items are, else float32.
    items: E [M, w], M > 0; float32, float64 or bfloat16, or float16 on a GPU; any strides.
    scale: What the scores are multiplied by: 1/τ.
    seen: Offsets int64 [n + 1] and items int64 [S]; user i's items[offsets[i] : offsets[i + 1]] are
        left out. None: nobody has seen any.

Values, weights and results have the dtype of users. Shapes, dtypes, devices or seen items that do
not fit are a ValueError. Derivatives are first ones alone;
where no columns are asked for, log Σ exp has second ones in users.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fudlr_ext.ops._autograd import register, register_last, register_without, same_device

Seen = tuple[Tensor, Tensor] | None


def _split(op: str, seen: Seen, **tensors: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the offsets and the items seen, or None twice; raise where devices differ."""
    offsets, listed = (None, None) if seen is None else seen
    same_device(op, **tensors, seen_offsets=offsets, seen_items=listed)
    return offsets, listed


def catalogue_mean(
    users: Tensor, items: Tensor, values: Tensor, scale: float = 1.0, seen: Seen = None
) -> tuple[Tensor, Tensor]:
    """Return p C for values C [M, c], as [n, c], and log Σ exp of the scores [n].

    Values are a few columns, such as log-popularity or shares of groups. One pass over the items
    forward, and one backward. NaN and −∞ for a user who has seen every item. Differentiable in
    users, items and values.
    """
    given = _split("catalogue_mean", seen, users=users, items=items, values=values)
    return torch.ops.fudlr.catalogue_mean(users, items, values, scale, *given)


def _mean_fake(users: Tensor, items: Tensor, values: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    n = users.shape[0]
    return users.new_empty(n, values.shape[1]), users.new_empty(n)


def _mean_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    users, items, values, ctx.scale, offsets, listed = inputs
    ctx.save_for_backward(users, items, values, offsets, listed, *output)


def _mean_backward(ctx: Any, to_mean: Tensor, to_lse: Tensor) -> tuple[Tensor | None, ...]:
    users, items, values, offsets, listed, mean, lse = ctx.saved_tensors
    need = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled() and not values.shape[1] and not any(need[1:]):
        # ∂ log Σ exp / ∂h = scale · p E: an expectation, which has a derivative of its own.
        seen = None if offsets is None else (offsets, listed)
        rows = catalogue_mean(users, items, items.to(users.dtype), ctx.scale, seen)[0]
        return ctx.scale * to_lse[:, None] * rows, None, None, None, None, None
    shift = (to_mean * mean).sum(1) - to_lse
    found = torch.ops.fudlr_grad.catalogue_mean_backward(
        users, items, values, ctx.scale, offsets, listed, lse, to_mean, shift, *need
    )
    given = (x if wanted else None for x, wanted in zip(found, need, strict=True))
    return *given, None, None, None


register("fudlr::catalogue_mean", _mean_fake, _mean_backward, _mean_save)


def _fake_backward(
    users: Tensor, items: Tensor, values: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = [
        x.shape if needed else (0, 0)
        for x, needed in zip((users, items, values), rest[-3:], strict=True)
    ]
    return users.new_empty(shapes[0]), items.new_empty(shapes[1]), values.new_empty(shapes[2])


register_last(
    "fudlr_grad::catalogue_mean_backward",
    _fake_backward,
    "a softmax over a catalogue",
    "Take it from fudlr_ext.reference on few items",
)


def catalogue_share(
    users: Tensor, items: Tensor, weights: Tensor, scale: float = 1.0, seen: Seen = None
) -> Tensor:
    """Return pᵀ W for weights W [n, g], as [M, g]: what each item gets of whom.

    With a column of W that is 1/size for the users of a group and 0 for others, it is that group's
    mean distribution. NaN where a user has seen every item. Two passes over the items.
    Differentiable in users, items and weights, at the price of `catalogue_mean` and its gradient.
    """
    given = _split("catalogue_share", seen, users=users, items=items, weights=weights)
    return torch.ops.fudlr.catalogue_share(users, items, weights, scale, *given)


def _share_fake(users: Tensor, items: Tensor, weights: Tensor, *_: object) -> Tensor:
    return users.new_empty(items.shape[0], weights.shape[1])


def _share_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    users, items, weights, ctx.scale, offsets, listed = inputs
    ctx.save_for_backward(users, items, weights, offsets, listed)


def _share_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Σ_mg grad_mg (pᵀ W)_mg = Σ_ig W_ig (p grad)_ig: an expectation of the values grad.
    users, items, weights, offsets, listed = ctx.saved_tensors
    given = (users, items, grad, ctx.scale, offsets, listed)
    to_weights, lse = torch.ops.fudlr.catalogue_mean(*given)
    need = ctx.needs_input_grad[:3]
    shift = (weights * to_weights).sum(1)
    to_users, to_items, _ = torch.ops.fudlr_grad.catalogue_mean_backward(
        *given, lse, weights, shift, *need[:2], False
    )
    found = zip((to_users, to_items, to_weights), need, strict=True)
    return *(x if wanted else None for x, wanted in found), None, None, None


register("fudlr::catalogue_share", _share_fake, _share_backward, _share_save)


def catalogue_top(users: Tensor, items: Tensor, k: int, seen: Seen = None) -> tuple[Tensor, Tensor]:
    """Return each user's k ≤ M highest scores h_i · e_m and their items int64, [n, k], exactly.

    One pass; highest first, of equal scores the lower item; −∞ and −1 behind the last item that a
    user has not seen. Not differentiable: for gradients, score the returned items again.
    """
    given = _split("catalogue_top", seen, users=users, items=items)
    if torch._C._any_requires_grad(users, items) or forward_ad._current_level >= 0:
        users, items = users.detach(), items.detach()
    return torch.ops.fudlr.catalogue_top(users, items, k, *given)


def _top_fake(users: Tensor, items: Tensor, k: int, *_: object) -> tuple[Tensor, Tensor]:
    scores = users.new_empty(users.shape[0], k)
    return scores, torch.empty_like(scores, dtype=torch.int64)


register_without("fudlr::catalogue_top", _top_fake)
