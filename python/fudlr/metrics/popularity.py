"""How far recommendations follow popularity, and how evenly they use the catalogue.

ARP and APLT: Abdollahpouri, Burke, Mobasher, "Managing popularity bias in recommender systems with
personalized re-ranking" (2019). Gini, entropy and coverage of exposure are as Elliot has them, on
the items' counts in all lists; entropy is in nats. RecBole 1.2.1 counts its padding item as one of
the catalogue, and divides entropy by the number of listed items.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from fudlr.metrics.base import MeanMetric, Side, SummedMetric, catalogue_softmax


class AverageRecommendationPopularity(MeanMetric):
    """ARP: mean φ(i) over the lists; the surrogate is the mean of Σ_i p_i log(1 + φ(i)).

    The logarithm keeps a handful of blockbusters from owning the whole gradient.
    """

    name = "arp"
    lower_is_better = True
    bounds = (0.0, math.inf)

    def hard_rows(self, top: Tensor, side: Side) -> Tensor:
        """Return the mean count of each list."""
        return side.popularity.double()[top].mean(1, keepdim=True)

    def soft_rows(self, scores: Tensor, side: Side) -> Tensor:
        """Return the expected log(1 + count)."""
        p = catalogue_softmax(scores, side.seen)
        return p @ side.popularity.log1p().to(p.dtype)[:, None]


class AveragePercentageOfLongTail(MeanMetric):
    """APLT: mean share of tail items in the lists; the surrogate is the expected share."""

    name = "aplt"
    lower_is_better = False
    bounds = (0.0, 1.0)

    def hard_rows(self, top: Tensor, side: Side) -> Tensor:
        """Return each list's share of tail items."""
        return side.tail[top].double().mean(1, keepdim=True)

    def soft_rows(self, scores: Tensor, side: Side) -> Tensor:
        """Return the tail's probability."""
        p = catalogue_softmax(scores, side.seen)
        return p @ side.tail.to(p.dtype)[:, None]


class Exposure(SummedMetric):
    """A function of each item's exposure: its count in all lists, or its mean probability."""

    bounds = (0.0, 1.0)

    def hard_rows(self, top: Tensor, side: Side) -> Tensor:
        """Return one-hot lists: [n, M]."""
        rows = torch.zeros(side.seen.shape, dtype=torch.float64, device=top.device)
        return rows.scatter_(1, top, 1.0)

    def hard_sums(self, top: Tensor, side: Side, weights: Tensor) -> Tensor:
        """Count without the [n, M] matrix, which is almost empty."""
        sums = weights.new_zeros(len(weights), side.popularity.numel())
        return sums.index_add_(1, top.flatten(), weights.repeat_interleave(top.shape[1], dim=1))

    def soft_rows(self, scores: Tensor, side: Side) -> Tensor:
        """Return the catalogue softmax: [n, M]."""
        return catalogue_softmax(scores, side.seen)

    @abstractmethod
    def leave_out(self, top: Tensor, side: Side) -> Tensor:
        """Return the hard value less the value without each prompt in turn: [n] float64, exact."""

    def soft_gradient(self, sums: Tensor, side: Side) -> Tensor:
        """Return the surrogate's derivative in the sums [M] of the soft rows: [M] float64."""
        with torch.enable_grad():
            leaf = sums.detach().double().requires_grad_()
            (gradient,) = torch.autograd.grad(
                self.soft_finish(leaf[None], leaf.new_ones(1), side).sum(), leaf
            )
        return gradient


def _counts(top: Tensor, side: Side) -> Tensor:
    return torch.bincount(top.flatten(), minlength=side.popularity.numel()).double()


class Gini(Exposure):
    """Gini index of exposure: Σ_j (2j - M - 1) x_(j) / (M Σ x), x ascending; 0 is equal.

    The surrogate is the same on the mean catalogue distribution, differentiable wherever no two
    items' exposures are equal.
    """

    name = "gini"
    lower_is_better = True

    def finish(self, sums: Tensor, total: Tensor, side: Side) -> Tensor:
        """Weigh the sorted exposures."""
        m = sums.shape[1]
        position = torch.arange(1, m + 1, device=sums.device, dtype=sums.dtype)
        ascending = sums.sort(dim=1).values
        return ascending @ (2 * position - m - 1) / (m * sums.sum(1))

    def leave_out(self, top: Tensor, side: Side) -> Tensor:
        """Lower the first of the items with equal counts, which leaves the order as it is."""
        counts = _counts(top, side)
        (k, m), total = (top.shape[1], len(counts)), counts.sum()
        value = self.finish(counts[None], total[None], side)
        own = counts[top]
        first = torch.searchsorted(counts.sort().values, own.contiguous()) + 1
        # Of r items with the same count the i-th is i places higher: r (r - 1) in the sum of 2 j.
        equal = (own[:, :, None] == own[:, None, :]).sum((1, 2)) - k
        lowered = value * m * total - (2 * first - m - 1).sum(1) - equal
        return value - lowered / (m * (total - k).clamp_min(1))


class Entropy(Exposure):
    """Shannon entropy of exposure, -Σ q log q in nats, q the exposures divided by their sum."""

    name = "entropy"
    lower_is_better = False
    bounds = (0.0, math.inf)

    def finish(self, sums: Tensor, total: Tensor, side: Side) -> Tensor:
        """Return the entropy of the distribution over items; 0 log 0 = 0."""
        q = sums / sums.sum(1, keepdim=True)
        return torch.special.entr(q.clamp_min(torch.finfo(q.dtype).tiny)).sum(1)

    def leave_out(self, top: Tensor, side: Side) -> Tensor:
        """Take terms out of log S - (1/S) Σ c log c, c the counts and S their sum."""
        counts = _counts(top, side)
        own, total = counts[top], counts.sum()
        weighed = torch.special.xlogy(counts, counts).sum()
        lost = torch.special.xlogy(own, own) - torch.special.xlogy(own - 1, own - 1)
        less = (total - top.shape[1]).clamp_min(1)
        value = total.log() - weighed / total
        return value - (less.log() - (weighed - lost.sum(1)) / less)


class Coverage(Exposure):
    """Coverage: share of the catalogue in at least one list.

    The surrogate is the share expected where every user draws K items, independently and with
    replacement, from their catalogue softmax: 1 - Π_u (1 - p_ui)^K, averaged over the items.
    """

    name = "coverage"
    lower_is_better = False

    def finish(self, sums: Tensor, total: Tensor, side: Side) -> Tensor:
        """Count the items with any exposure."""
        return (sums > 0).to(sums.dtype).mean(1)

    def leave_out(self, top: Tensor, side: Side) -> Tensor:
        """Return the share of items that are in this list alone."""
        counts = _counts(top, side)
        return (counts[top] == 1).double().sum(1) / len(counts)

    def soft_rows(self, scores: Tensor, side: Side) -> Tensor:
        """Return the log-probability that an item is missed, K log(1 - p): [n, M]."""
        p = catalogue_softmax(scores, side.seen)
        # p = 1 would make the logarithm infinite; the item is covered long before.
        return side.k * torch.log1p(-p.clamp_max(1 - 1e-6))

    def soft_finish(self, sums: Tensor, total: Tensor, side: Side) -> Tensor:
        """Average the probability of at least one draw."""
        return -torch.expm1(sums).mean(1)
