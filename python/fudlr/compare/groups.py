"""Groups of items for rivals that need some: classes of popularity, or the items' own groups."""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.compare.base import Setting
from fudlr.metrics import Side

HEAD, TAIL = 0.2, 0.8
"""Quantiles of popularity between head and middle, and middle and tail."""


def item_classes(side: Side, by_popularity: bool) -> Tensor:
    """Shares of each item in groups, [M, G]: head, middle, tail; or its genres."""
    if not by_popularity and side.item_groups is not None:
        return side.item_groups.float()
    rank = side.popularity.argsort(descending=True, stable=True).argsort()
    place = rank / len(rank)
    kind = (place >= HEAD).long() + (place >= TAIL).long()
    return torch.nn.functional.one_hot(kind, 3).float()


def classes(setting: Setting) -> Tensor:
    """The groups that fit the setting's objective, [M, G]."""
    return item_classes(setting.valid.side, setting.by_popularity)


def history_shares(side: Side, groups: Tensor) -> Tensor:
    """Shares of the groups in each prompt's history, [n, G]."""
    shares = side.seen.float() @ groups
    return shares / shares.sum(1, keepdim=True).clamp_min(1e-12)
