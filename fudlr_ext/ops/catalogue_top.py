"""The highest scores of a catalogue."""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr_ext.ops._catalogue import Seen, split_seen
from fudlr_ext.ops._devices import same_device


def catalogue_top(users: Tensor, items: Tensor, k: int, seen: Seen = None) -> tuple[Tensor, Tensor]:
    """Return each user's k highest scores h_i · e_m and their items, exactly, in one pass.

    Highest first, and of equal scores the lower item. A user's numbers depend on that user alone.
    Not differentiable: for gradients, score the returned items again.

    Args:
        users: h [n, w]; float64 where items are, else float32.
        items: E [M, w], M > 0; float32, float64 or bfloat16, or float16 on a GPU; any strides.
        k: How many, at most M.
        seen: Items that are left out, for each user; see `catalogue_mean`.

    Returns:
        Scores [n, k] in the dtype of users, and items int64 [n, k]; −∞ and −1 behind the last item
        that a user has not seen.

    Raises:
        ValueError: Shapes, dtypes, devices, seen items or a k that do not fit.
    """
    offsets, listed = split_seen(seen)
    same_device("catalogue_top", users=users, items=items, seen_offsets=offsets, seen_items=listed)
    return torch.ops.fudlr.catalogue_top(users.detach(), items.detach(), k, offsets, listed)


def _fake(
    users: Tensor,
    items: Tensor,
    k: int,
    seen_offsets: Tensor | None = None,
    seen_items: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    scores = users.new_empty(users.shape[0], k)
    return scores, torch.empty_like(scores, dtype=torch.int64)


torch.library.register_fake("fudlr::catalogue_top", _fake)
