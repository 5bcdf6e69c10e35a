"""Whether groups of users get different recommendations, and groups of items their share.

The paper leaves HD and DP undefined in what is at hand: `hellinger` and `hit_gap` are both offered
for the first, `dp` is the demographic-parity gap of mean exposures. MGU and DGU follow Jiang et
al., "Item-side fairness of large language model-based recommendation system" (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fudlr.common.factors import Scores
from fudlr.metrics.accuracy import hit
from fudlr.metrics.base import Metric, SummedMetric, surrogate
from fudlr.metrics.scores import Rows, expected, probability
from fudlr.metrics.side import Side

Gap = Callable[[Tensor, Tensor], Tensor]
"""(means [R, U, C] of U groups, which of them are there [R, U]) to the gap between them, [R]."""


def _list_exposure(top: Tensor, side: Side) -> Tensor:
    """Return the item groups' mean shares in each list: [n, G] float64."""
    assert side.item_groups is not None  # missing() was asked first
    return side.item_groups.double()[top].mean(1)


def _soft_exposure(scores: Scores, side: Side) -> Tensor:
    """Return the item groups' expected shares under the catalogue softmax: [n, G]."""
    return expected(scores, side, slice(2, None))


class GroupGap(SummedMetric):
    """A gap between the means over user groups of some features [n, C] of each prompt.

    Prompts without a group do not count; a group that has no weight is not compared.

    Args:
        name: As the objective and the files write it.
        hard: Features from the lists, float64.
        soft: The same from the catalogue softmax.
        gap: Between groups.
        attributes: Those of `Metric`, where they are not its defaults.
    """

    def __init__(self, name: str, hard: Rows, soft: Rows, gap: Gap, **attributes: Any) -> None:
        super().__init__(
            name,
            lambda top, side: _by_group(hard(top, side), side),
            lambda scores, side: _by_group(soft(scores, side), side),
            self._compared,
            lower_is_better=True,
            needs_groups=True,
            at_k=True,
            soft_suffix="",
            factored=True,
            **attributes,
        )
        self.gap = gap

    def _compared(self, sums: Tensor, total: Tensor, side: Side) -> Tensor:
        """Divide by each group's weight and compare."""
        sums = sums.unflatten(1, (side.n_groups, -1))
        weight = sums[:, :, :1]
        return self.gap(sums[:, :, 1:] / weight.clamp_min(1e-30), weight[:, :, 0] > 0)


def _by_group(features: Tensor, side: Side) -> Tensor:
    """Put each prompt's (1, features) into its group's place: [n, U (1 + C)] float64.

    Gaps are small differences of large means, hence the precision.
    """
    features = features.double()
    member = side.user_group[:, None] == torch.arange(side.n_groups, device=features.device)
    counted = torch.cat([torch.ones_like(features[:, :1]), features], dim=1)
    return (member.to(features.dtype)[:, :, None] * counted[:, None, :]).flatten(1)


def _root(x: Tensor) -> Tensor:
    """Return √x with gradient 0 at 0, where the true one is infinite and no direction is better."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


def _largest_difference(means: Tensor, present: Tensor) -> Tensor:
    """Return the largest difference between two present groups in any feature: [R]."""
    absent = ~present[:, :, None]
    high = means.masked_fill(absent, -torch.inf).amax(1)
    low = means.masked_fill(absent, torch.inf).amin(1)
    return torch.where(present.any(1), (high - low).amax(1), 0.0)


def _hellinger(shares: Tensor, present: Tensor) -> Tensor:
    root = _root(shares)
    squared = (root[:, :, None] - root[:, None, :]).square().sum(3) / 2
    both = present[:, :, None] & present[:, None, :]
    return _root(squared.masked_fill(~both, 0.0).flatten(1).amax(1))


def _exposure_gap(name: str, distance: Gap) -> GroupGap:
    """A gap between the groups' mean distributions; items of unknown group count for none."""

    def gap(means: Tensor, present: Tensor) -> Tensor:
        return distance(means / means.sum(2, keepdim=True).clamp_min(1e-30), present)

    return GroupGap(name, _list_exposure, _soft_exposure, gap, needs_items=True)


HELLINGER = _exposure_gap("hellinger", _hellinger)
"""Hellinger distance √(½ Σ_g (√p_g - √q_g)²) between the two groups that differ most."""
DP = _exposure_gap("dp", _largest_difference)
"""Demographic parity: the largest gap between two groups' mean shares of any item group."""
HIT_GAP = GroupGap("hit_gap", hit, probability, _largest_difference)
"""The largest gap between two groups' HR@K; the surrogate has the target's probability."""


def _unfairness(name: str, of: Callable[[Tensor], Tensor]) -> SummedMetric:
    """A function of group unfairness: item groups' mean shares recommended minus in histories."""

    def less_history(exposure: Rows) -> Rows:
        def rows(given: Tensor, side: Side) -> Tensor:
            assert side.history_groups is not None
            shares = exposure(given, side)
            return shares - side.history_groups.to(shares.dtype)

        return rows

    return SummedMetric(
        name,
        less_history(_list_exposure),
        less_history(_soft_exposure),
        lambda sums, total, side: of(sums / total[:, None]),
        lower_is_better=True,
        needs_history=True,
        at_k=True,
        soft_suffix="",
        factored=True,
        bounds=(0.0, math.inf),
    )


MGU = _unfairness("mgu", lambda unfairness: unfairness.abs().mean(1))
"""Mean over item groups of |share recommended - share in histories|."""
DGU = _unfairness("dgu", lambda unfairness: unfairness.amax(1) - unfairness.amin(1))
"""Largest minus smallest difference, the most favoured item group's to the least's."""


class Within(Metric):
    """A metric of some of the prompts alone: F_c(scores) = F(scores of the prompts in c).

    ∂F_c/∂scores is zero outside of c, so that the gradients for disjoint sets of users cost
    together about what one metric's does.

    Args:
        metric: Of any prompts.
        member: [n] bool, which of the prompts count.
        name: What it is called.
    """

    def __init__(self, metric: Metric, member: Tensor, name: str) -> None:
        self.metric, self.index, self.name = metric, member.nonzero().flatten(), name
        self.lower_is_better = metric.lower_is_better
        self.needs_groups = metric.needs_groups

    def hard(self, top: Tensor, side: Side, weights: Tensor | None = None) -> Tensor:
        """The value on the lists `top` [n, K] of the set's prompts."""
        chosen = None if weights is None else weights[self.index]
        return self.metric.hard(top[self.index], side.take(self.index), chosen)

    factored = True

    def surrogate(self, scores: Scores, side: Side) -> Tensor:
        """A scalar, differentiable in `scores` [n, M], or in the users of factors."""
        return surrogate(self.metric, scores[self.index], side.take(self.index))

    def missing(self, side: Side) -> str | None:
        """What the metric lacks on the set's prompts, or None."""
        return self.metric.missing(side.take(self.index))

    def ordered(self, order: Tensor) -> Within:
        """The same for the prompts in another order: [n] int64, the prompt that stands there."""
        member = torch.zeros(len(order), dtype=torch.bool)
        member[self.index] = True
        return Within(self.metric, member[order], self.name)
