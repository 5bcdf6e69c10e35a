"""Candidates: which samples are scored at all, where there is no store to score every one from.

Each strategy picks a share of the n samples before any gradient is taken; what is not picked cannot
be removed. What that costs in effect is measured in docs/results.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fudlr.common.errors import UsageError

STRATA = 10
"""Strata of equal size by the target's popularity."""


def sample_candidates(n: int, share: float, seed: int) -> Tensor:
    """A random share of n samples, at least one: sorted indices `[⌈share · n⌉]`, by `seed` alone.

    Raises:
        UsageError: The share is outside (0, 1], or n < 1.
    """
    if not 0 < share <= 1 or n < 1:
        raise UsageError(
            "a random share of the samples was to be scored",
            f"share {share} of {n} samples",
            "Give a share above 0 and at most 1, and at least one sample",
        )
    generator = torch.Generator().manual_seed(seed)
    count = min(n, math.ceil(share * n - 1e-9))
    return torch.randperm(n, generator=generator)[:count].sort().values


@dataclass(frozen=True)
class Candidacy:
    """What the strategies know of n training samples.

    Attributes:
        popularity: Of each sample's target, `[n]`.
        groups: User group of each sample, `[n]`, −1 for none.
        losses: Gives ℓ_i `[n]`; a forward pass over all samples, made where it is asked for.
    """

    popularity: Tensor
    groups: Tensor
    losses: Callable[[], Tensor]

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.popularity.numel()


def _random(known: Candidacy, share: float, seed: int) -> Tensor:
    return sample_candidates(known.n, share, seed)


def _stratified(known: Candidacy, share: float, seed: int) -> Tensor:
    """The same share of every stratum of target popularity, at random within it."""
    order = known.popularity.argsort(stable=True)
    strata = [part for part in order.tensor_split(STRATA) if part.numel()]
    count = _count(known.n, share)
    return _from_each(strata, [count * part.numel() / known.n for part in strata], count, seed)


def _group(known: Candidacy, share: float, seed: int) -> Tensor:
    """As many from each user group, at random within it; all of a group that has fewer."""
    if int(known.groups.max()) < 1:
        raise UsageError(
            "candidates were to be taken from each user group alike",
            "the users have no groups",
            "Name a column of groups with data.user_group, or choose other candidates",
        )
    parts = [(known.groups == g).nonzero().flatten() for g in known.groups.unique() if g >= 0]
    count = _count(known.n, share)
    return _from_each(parts, [count / len(parts)] * len(parts), count, seed)


def _popularity(known: Candidacy, share: float, seed: int) -> Tensor:
    """The most popular targets."""
    return _largest(known.popularity, share)


def _loss(known: Candidacy, share: float, seed: int) -> Tensor:
    """The samples that the model fits worst."""
    return _largest(known.losses(), share)


STRATEGIES: dict[str, Callable[[Candidacy, float, int], Tensor]] = {
    "random": _random,
    "stratified": _stratified,
    "popularity": _popularity,
    "loss": _loss,
    "group": _group,
}
"""Every strategy by the name that options use: indices of the candidates."""


def choose_candidates(strategy: str, share: float, seed: int, known: Candidacy) -> Tensor | None:
    """Rising indices of the samples that may be removed, `[m]`; None where all may.

    Raises:
        UsageError: No such strategy, or groups are asked for and there are none.
    """
    if strategy == "all":
        return None
    if strategy not in STRATEGIES:
        raise UsageError(
            f"candidates {strategy!r} were asked for",
            "there is no such strategy",
            f"Choose one of all, {', '.join(STRATEGIES)}",
        )
    return STRATEGIES[strategy](known, share, seed).sort().values


def _count(n: int, share: float) -> int:
    return min(n, math.ceil(share * n - 1e-9))


def _largest(values: Tensor, share: float) -> Tensor:
    count = _count(values.numel(), share)
    return values.sort(descending=True, stable=True).indices[:count]


def _from_each(parts: list[Tensor], wanted: list[float], count: int, seed: int) -> Tensor:
    """About `wanted[i]` of part i, `count` in all, at random; what a part lacks others give."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = [part[torch.randperm(part.numel(), generator=generator)] for part in parts]
    taken = [min(part.numel(), int(want)) for part, want in zip(shuffled, wanted, strict=True)]
    while sum(taken) < count:
        room = [i for i, part in enumerate(shuffled) if taken[i] < part.numel()]
        if not room:
            break
        taken[max(room, key=lambda i: wanted[i] - taken[i])] += 1
    return torch.cat([part[:k] for part, k in zip(shuffled, taken, strict=True)])
