"""Sample ids in rising order: recordings mostly append them so, and then nothing need be sorted.

A sort takes several times the ids' memory, which for 10⁷ samples is more than a store's window.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rising(ids: Tensor) -> bool:
    """Whether each of `ids` `[n]` is larger than the one before, so that none is there twice."""
    return bool((ids[1:] > ids[:-1]).all())


def ascending(ids: Tensor) -> Tensor:
    """`ids` `[n]` sorted; they themselves where they rise."""
    return ids if rising(ids) else ids.sort().values


def contains(sorted_ids: Tensor, ids: Tensor) -> Tensor:
    """Which of `ids` are in `sorted_ids`, which ascend, `[b]` bool."""
    if not sorted_ids.numel():
        return torch.zeros(ids.shape, dtype=torch.bool)
    place = torch.searchsorted(sorted_ids, ids).clamp(max=sorted_ids.numel() - 1)
    return sorted_ids[place] == ids
