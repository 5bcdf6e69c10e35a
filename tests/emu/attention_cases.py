"""Arguments of the attention ops for the kernels for GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

OFFSETS = (3, 4, 5)
"""Which arguments are offsets and limits."""


class AttentionSize(NamedTuple):
    """Samples of these lengths, heads of `width` numbers, k tangents a position."""

    lengths: tuple[int, ...]
    width: int
    k: int
    heads: int = 2
    key_heads: int = 1

    def __str__(self) -> str:
        return "-".join(map(str, (*self.lengths, "w", self.width, "k", self.k, "h", self.heads)))


# Samples are cut into tiles of 64 positions, heads into slabs of 8 or 16 numbers; a block sums 64
# or 128 columns at a time.
SIZES = (
    AttentionSize((5, 0, 1, 9), 3, 2, 4, 2),
    AttentionSize((0, 66), 130, 1),
    AttentionSize((66, 2), 64, 2),
)
# On a GPU alone: layers of a 1B model.
LARGE = AttentionSize((512, 100, 700, 3), 64, 3, 32, 8)

WAYS = {
    "attention": ("all", "some"),
    "attention_tangent": ("all", "some"),
    "attention_backward": ("all", "some", "all second", "some second"),
}


def make(op: str, random: Callable[..., Tensor], size: AttentionSize, way: str) -> tuple:
    """Arguments of an op; all positions query, or every third, which leaves keys that none sees."""
    keys = torch.tensor([0, *size.lengths]).cumsum(0)
    seen = [torch.arange(1, length + 1) for length in (*size.lengths, 0)]
    if way.startswith("some"):
        seen = [limits[limits % 3 == 1] for limits in seen]
    queries = torch.tensor([0, *map(len, seen[:-1])]).cumsum(0)
    rows = [int(queries[-1]), int(keys[-1]), int(keys[-1])]
    columns = [heads * size.width for heads in (size.heads, size.key_heads, size.key_heads)]

    def arrays(each: int) -> list[Tensor]:
        return [random(row * each, column) for row, column in zip(rows, columns, strict=True)]

    given = (*arrays(1), queries, keys, torch.cat(seen), size.heads, size.key_heads, 0.3)
    if op == "attention":
        return given
    along = arrays(size.k)
    if op == "attention_tangent":
        return *given, *along
    second = way.endswith("second")
    delta = random(rows[0], columns[0]) if second else None
    grads = random(rows[0] * size.k, columns[0])
    return *given, grads, delta, *(along if second else (None,) * 3)
