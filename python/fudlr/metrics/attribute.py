"""Whether groups of users get different recommendations, and groups of items their share.

The paper leaves HD and DP undefined in what is at hand: `hellinger` and `hit_gap` are both offered
for the first, `dp` is the demographic-parity gap of mean exposures. MGU and DGU follow Jiang et
al., "Item-side fairness of large language model-based recommendation system" (2024).
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from fudlr.metrics.accuracy import hits, target_probability
from fudlr.metrics.base import Side, SummedMetric, catalogue_softmax


def _has_item_groups(side: Side) -> bool:
    return side.item_groups is not None and side.item_groups.shape[1] > 1


def _item_groups(side: Side, dtype: torch.dtype) -> Tensor:
    if side.item_groups is None:
        raise AssertionError("missing() was to be asked first")
    return side.item_groups.to(dtype)


def _list_exposure(top: Tensor, side: Side) -> Tensor:
    """Return the item groups' mean shares in each list: [n, G] float64."""
    return _item_groups(side, torch.float64)[top].mean(1)


def _soft_exposure(scores: Tensor, side: Side) -> Tensor:
    """Return the item groups' expected shares under the catalogue softmax: [n, G]."""
    p = catalogue_softmax(scores, side.seen)
    return p @ _item_groups(side, p.dtype)


def _root(x: Tensor) -> Tensor:
    """Return √x with gradient 0 at 0, where the true one is infinite and no direction is better."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


class GroupGap(SummedMetric):
    """A gap between the means over user groups of some features of each prompt.

    Prompts without a group do not count; a group that has no weight is not compared.
    """

    lower_is_better = True
    needs_groups = True
    at_k = True
    soft_suffix = ""
    bounds = (0.0, 1.0)

    @abstractmethod
    def hard_features(self, top: Tensor, side: Side) -> Tensor:
        """Return what is averaged within groups, from the lists: [n, C] float64."""

    @abstractmethod
    def soft_features(self, scores: Tensor, side: Side) -> Tensor:
        """Return the same from the catalogue softmax: [n, C]."""

    @abstractmethod
    def gap(self, means: Tensor, present: Tensor) -> Tensor:
        """Return the gap between groups with means [R, U, C], where `present` [R, U]: [R]."""

    def group_rows(self, features: Tensor, user_group: Tensor, n_groups: int) -> Tensor:
        """Put each prompt's (1, features) into its group's place: [n, U (1 + C)] float64.

        Gaps are small differences of large means, hence the precision.
        """
        features = features.double()
        member = user_group[:, None] == torch.arange(n_groups, device=user_group.device)
        counted = torch.cat([torch.ones_like(features[:, :1]), features], dim=1)
        return (member.to(features.dtype)[:, :, None] * counted[:, None, :]).flatten(1)

    def hard_rows(self, top: Tensor, side: Side) -> Tensor:
        """Return the features in their group's place."""
        return self.group_rows(self.hard_features(top, side), side.user_group, side.n_groups)

    def soft_rows(self, scores: Tensor, side: Side) -> Tensor:
        """Return the soft features in their group's place."""
        return self.group_rows(self.soft_features(scores, side), side.user_group, side.n_groups)

    def finish(self, sums: Tensor, total: Tensor, side: Side) -> Tensor:
        """Divide by each group's weight and compare."""
        sums = sums.unflatten(1, (side.n_groups, -1))
        weight = sums[:, :, :1]
        return self.gap(sums[:, :, 1:] / weight.clamp_min(1e-30), weight[:, :, 0] > 0)


def _largest_difference(means: Tensor, present: Tensor) -> Tensor:
    """Return the largest difference between two present groups in any feature: [R]."""
    absent = ~present[:, :, None]
    high = means.masked_fill(absent, -torch.inf).amax(1)
    low = means.masked_fill(absent, torch.inf).amin(1)
    gap = (high - low).amax(1)
    return torch.where(present.any(1), gap, 0.0)


class _ExposureGap(GroupGap):
    """A gap between the groups' mean distributions over item groups."""

    def missing(self, side: Side) -> str | None:
        """Ask for item groups too."""
        if not _has_item_groups(side):
            return "it compares item groups, and the items have none"
        return super().missing(side)

    def hard_features(self, top: Tensor, side: Side) -> Tensor:
        """Return the shares of item groups in each list."""
        return _list_exposure(top, side)

    def soft_features(self, scores: Tensor, side: Side) -> Tensor:
        """Return the expected shares of item groups."""
        return _soft_exposure(scores, side)

    def gap(self, means: Tensor, present: Tensor) -> Tensor:
        """Make the means distributions (items of unknown group count for none) and compare."""
        mass = means.sum(2, keepdim=True)
        return self.distance(means / mass.clamp_min(1e-30), present)

    @abstractmethod
    def distance(self, shares: Tensor, present: Tensor) -> Tensor:
        """Return the distance between the present groups' distributions [R, U, G]: [R]."""


class Hellinger(_ExposureGap):
    """Hellinger distance √(½ Σ_g (√p_g - √q_g)²) between the two groups that differ most."""

    name = "hellinger"

    def distance(self, shares: Tensor, present: Tensor) -> Tensor:
        """Take the largest over all pairs of groups."""
        root = _root(shares)
        squared = (root[:, :, None] - root[:, None, :]).square().sum(3) / 2
        both = present[:, :, None] & present[:, None, :]
        return _root(squared.masked_fill(~both, 0.0).flatten(1).amax(1))


class DemographicParity(_ExposureGap):
    """DP: the largest gap between two groups' mean shares of any item group."""

    name = "dp"

    def distance(self, shares: Tensor, present: Tensor) -> Tensor:
        """Take the largest over item groups and pairs."""
        return _largest_difference(shares, present)


class HitGap(GroupGap):
    """The largest gap between two groups' HR@K; the surrogate has the target's probability."""

    name = "hit_gap"

    def hard_features(self, top: Tensor, side: Side) -> Tensor:
        """Return whether the target is in the list."""
        return hits(top, side).any(1, keepdim=True).double()

    def soft_features(self, scores: Tensor, side: Side) -> Tensor:
        """Return the target's probability."""
        return target_probability(scores, side)

    def gap(self, means: Tensor, present: Tensor) -> Tensor:
        """Take the largest over pairs."""
        return _largest_difference(means, present)


class _Unfairness(SummedMetric):
    """A function of group unfairness: item groups' mean shares recommended minus in histories."""

    lower_is_better = True
    at_k = True
    soft_suffix = ""
    bounds = (0.0, math.inf)

    def missing(self, side: Side) -> str | None:
        """Ask for item groups and histories."""
        if side.history_groups is None or not _has_item_groups(side):
            return "it compares item groups with users' histories, and one of them is missing"
        return super().missing(side)

    def _less_history(self, exposure: Tensor, side: Side) -> Tensor:
        if side.history_groups is None:
            raise AssertionError("missing() was to be asked first")
        return exposure - side.history_groups.to(exposure.dtype)

    def hard_rows(self, top: Tensor, side: Side) -> Tensor:
        """Return each list's shares minus its user's history's."""
        return self._less_history(_list_exposure(top, side), side)

    def soft_rows(self, scores: Tensor, side: Side) -> Tensor:
        """Return the expected shares minus the history's."""
        return self._less_history(_soft_exposure(scores, side), side)


class MeanGroupUnfairness(_Unfairness):
    """MGU: mean over item groups of |share recommended - share in histories|."""

    name = "mgu"

    def finish(self, sums: Tensor, total: Tensor, side: Side) -> Tensor:
        """Average the absolute differences."""
        return (sums / total[:, None]).abs().mean(1)


class DisparityOfGroupUnfairness(_Unfairness):
    """DGU: largest minus smallest difference, the most favoured item group's to the least's."""

    name = "dgu"

    def finish(self, sums: Tensor, total: Tensor, side: Side) -> Tensor:
        """Take the range of the differences."""
        unfairness = sums / total[:, None]
        return unfairness.amax(1) - unfairness.amin(1)
