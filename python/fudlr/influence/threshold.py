"""The lowest scores under a budget, of scores that no process holds together.

The k-th lowest of all ranks' scores is found digit by digit: each rank counts how many of its
scores begin with which 16 bits, the counts are summed, and the digit in which the k-th falls is
the next one of the threshold (radix selection; Knuth, "The Art of Computer Programming", 5.2.5).
Among scores that are equal to it the lowest ids go. So the mask is the one of `mask.threshold_mask`
bit for bit, where samples are in the order of their ids; what is exchanged is 65,536 counts, twice
for float32, and as often for the ids where the last place is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fudlr.common.parallel import Ranks, ranks
from fudlr.influence.mask import check_budget, room_of
from fudlr.influence.scores import check_finite

Scored = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives this rank's samples part by part, again at each call: ids `[b]` from 0, scores `[b]`."""
DIGIT = 16
"""Bits that are found in one pass."""


@dataclass(frozen=True)
class Threshold:
    """The samples to remove, as all whose score is below a threshold.

    Attributes:
        key: The largest score's, see `_keys`.
        last: Of the samples with that score, the last id that is removed.
        removed: How many there are, of all ranks.
        samples: n, of all ranks.
    """

    key: int
    last: int
    removed: int
    samples: int

    def of(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Which of some samples `[b]` are removed, boolean."""
        keys = _keys(scores)
        return (keys < self.key) | ((keys == self.key) & (ids <= self.last))


def select(scored: Scored, budget: float) -> Threshold:
    """The lowest `budget` share of all ranks' scores, as far as they are below 0. A collective.

    Args:
        scored: This rank's samples, in any order; each sample is one rank's.
        budget: Largest share of all samples to remove, in (0, 1].

    Raises:
        UsageError: The budget is outside (0, 1].
        NumericalError: A score is not finite.
    """
    here = ranks()
    check_budget(budget)
    facts, bits, wide = torch.zeros(2, dtype=torch.int64), 1, False
    with here.together():
        for ids, scores in scored():
            check_finite(scores, "score")
            facts += torch.tensor([len(scores), int((scores < 0).sum())])
            bits = max(bits, int(ids.max()).bit_length() if len(ids) else 0)
            wide = scores.dtype == torch.float64
    here.sum(facts)
    n, below = facts.tolist()
    room = min(room_of(budget, n), below)
    if not room:
        return Threshold(-(2**63), -1, 0, n)
    width = 64 if any(here.gather(wide)) else 32
    key, left, equal = _kth(lambda: (_keys(scores) for _, scores in scored()), room, width, here)
    if left == equal:
        return Threshold(key, 2**63 - 1, room, n)

    def tied() -> Iterable[Tensor]:
        return (ids[_keys(scores) == key] for ids, scores in scored())

    return Threshold(key, _kth(tied, left, max(here.gather(bits)) + 1, here)[0], room, n)


def _kth(
    values: Callable[[], Iterable[Tensor]], k: int, width: int, here: Ranks
) -> tuple[int, int, int]:
    """The k-th lowest of all ranks' `values`, signed integers of `width` bits; its number among
    those that are equal to it, from 1; and how many these are."""
    base = -(2 ** (DIGIT - 1))  # of digits, the first of which has the sign
    found, equal = 0, 0
    for low in range((width - 1) // DIGIT * DIGIT, -1, -DIGIT):
        counts = torch.zeros(2**DIGIT, dtype=torch.int64)
        for part in values():
            digits = (part >> low) - ((found << DIGIT) + base)
            inside = digits[(digits >= 0) & (digits < len(counts))]
            counts += torch.bincount(inside, minlength=len(counts))
        here.sum(counts)
        upto = counts.cumsum(0)
        digit = int(torch.searchsorted(upto, k))
        equal = int(counts[digit])
        k -= int(upto[digit]) - equal
        found, base = (found << DIGIT) + base + digit, 0
    return found, k, equal


def _keys(scores: Tensor) -> Tensor:
    """Integers in the order of `scores`, float32 or float64; 0 and −0 are the same."""
    wide = scores.dtype == torch.float64
    bits = (scores + 0.0).view(torch.int64 if wide else torch.int32)
    ordered = bits ^ ((bits >> (63 if wide else 31)) & (2 ** (63 if wide else 31) - 1))
    return ordered.long()
