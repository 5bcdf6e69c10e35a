"""What the ops on a catalogue share: the items that users have seen, and the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.errors import EngineError

Seen = tuple[Tensor, Tensor] | None
"""Offsets int64 [n + 1] and items int64 [S]: user i has seen items[offsets[i] : offsets[i + 1]]."""


def split_seen(seen: Seen) -> tuple[Tensor | None, Tensor | None]:
    """Return the offsets and the items, or None twice."""
    return (None, None) if seen is None else seen


def _fake_backward(
    users: Tensor, items: Tensor, values: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    need_users, need_items, need_values = rest[-3:]

    def room(needed: bool, like: Tensor) -> Tensor:
        return like.new_empty(like.shape if needed else (0, 0))

    return room(need_users, users), room(need_items, items), room(need_values, values)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    pass


def _refuse(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    raise EngineError(
        "a gradient through the gradient of a softmax over a catalogue was asked for",
        "it has first derivatives only",
        "Take it from fudlr_ext.reference on few items",
    )


torch.library.register_fake("fudlr_grad::catalogue_mean_backward", _fake_backward)
torch.library.register_autograd(
    "fudlr_grad::catalogue_mean_backward", _refuse, setup_context=_setup
)
