"""How far recommendations follow popularity, and how evenly they use the catalogue.

ARP and APLT: Abdollahpouri, Burke, Mobasher, "Managing popularity bias in recommender systems with
personalized re-ranking" (2019). Gini, entropy and coverage of exposure are as Elliot has them, on
the items' counts in all lists; entropy is in nats. RecBole 1.2.1 counts its padding item as one of
the catalogue, and divides entropy by the number of listed items.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fudlr.common.factors import Scores
from fudlr.metrics.base import Finish, SummedMetric
from fudlr.metrics.pointwise import Function, over_items, over_prompts
from fudlr.metrics.scores import (
    Rows,
    by_tiles,
    check_scores,
    expected,
    log_sum,
    softmax_product,
    softmax_rows,
    softmax_sum,
)
from fudlr.metrics.side import Seen, Side


def _expected(column: int) -> Rows:
    """The expectation under the catalogue softmax of a value of the items: [n, 1]."""
    return lambda scores, side: expected(scores, side, slice(column, column + 1))


ARP = SummedMetric(
    "arp",
    lambda top, side: side.popularity.double()[top].mean(1, keepdim=True),
    _expected(0),
    lower_is_better=True,
    factored=True,
    bounds=(0.0, math.inf),
)
"""Mean φ(i) over the lists; the surrogate is the mean of Σ_i p_i log(1 + φ(i)).

The logarithm keeps a handful of blockbusters from owning the whole gradient.
"""
APLT = SummedMetric(
    "aplt",
    lambda top, side: side.tail[top].double().mean(1, keepdim=True),
    _expected(1),
    lower_is_better=False,
    factored=True,
)
"""Mean share of tail items in the lists; the surrogate is the expected share."""


class Exposure(SummedMetric):
    """A function of each item's exposure: its count in all lists, or its mean probability.

    Args:
        name: As the objective and the files write it.
        finish: Turns exposures [R, M] into the metric.
        leave_out: (lists [n, K], counts of all items [M]) to the hard value less the value without
            each prompt in turn, [n] float64, exact.
        of_p: What is summed for the surrogate, of each probability; 0 of 0. None: the probability.
        attributes: `soft_finish`, and those of `Metric`, where they are not its defaults.
    """

    factored = True

    def __init__(
        self,
        name: str,
        finish: Finish,
        leave_out: Callable[[Tensor, Tensor], Tensor],
        of_p: Function | None = None,
        **attributes: Any,
    ) -> None:
        super().__init__(name, _one_hot, self._of_softmax, finish, **attributes)
        self._leave_out, self._of_p = leave_out, of_p

    def _of_softmax(self, scores: Tensor, side: Side) -> Tensor:
        p = softmax_rows(scores, side)
        return p if self._of_p is None else self._of_p(p)

    def _of_log(self, log_p: Tensor) -> Tensor:
        assert self._of_p is not None
        return self._of_p(log_p.exp())

    def hard_sums(self, top: Tensor, side: Side, weights: Tensor) -> Tensor:
        """Count without the [n, M] matrix, which is almost empty."""
        sums = weights.new_zeros(len(weights), side.popularity.numel())
        return sums.index_add_(1, top.flatten(), weights.repeat_interleave(top.shape[1], dim=1))

    def soft_sums(self, scores: Scores, side: Side) -> Tensor:
        """Return the soft rows' sums over prompts: [M], without [n, M] where scores are factors."""
        if isinstance(scores, Tensor):
            rows: Tensor = self.soft_rows(scores, side)
            return rows.sum(0, dtype=torch.float64)
        if scores.link is not None:
            return by_tiles(self.soft_rows, scores, side, summed=True)
        if self._of_p is None:
            return softmax_sum(scores, side)
        seen = Seen(*side.lists, side.shape[1])
        return over_prompts(self._of_log, scores, seen, log_sum(scores, side))

    def soft_product(self, scores: Scores, side: Side, way: Tensor) -> Tensor:
        """Return the product of each soft row with `way` [M]: [n]."""
        if isinstance(scores, Tensor):
            rows: Tensor = self.soft_rows(scores, side)
            found: Tensor = rows @ way.to(rows.dtype)
            return found
        if scores.link is not None:
            return by_tiles(lambda s, tile: self.soft_product(s, tile, way), scores, side)
        if self._of_p is None:
            return softmax_product(scores, side, way)
        seen = Seen(*side.lists, side.shape[1])
        centre = log_sum(scores, side)
        return over_items(self._of_log, scores, seen, centre, way[:, None])[:, 0]

    def surrogate(self, scores: Scores, side: Side) -> Tensor:
        """Return a scalar, differentiable in `scores` [n, M], or in the users of factors."""
        if isinstance(scores, Tensor):
            return super().surrogate(scores, side)
        check_scores(scores, side)
        sums = self.soft_sums(scores, side)
        return self.soft_finish(sums[None], sums.new_full((1,), len(scores)), side)[0]

    def leave_out(self, top: Tensor, side: Side) -> Tensor:
        """Return the hard value less the value without each prompt in turn: [n] float64, exact."""
        counts = torch.bincount(top.flatten(), minlength=side.popularity.numel()).double()
        return self._leave_out(top, counts)

    def soft_gradient(self, sums: Tensor, side: Side) -> Tensor:
        """Return the surrogate's derivative in the sums [M] of the soft rows: [M] float64."""
        with torch.enable_grad():
            leaf = sums.detach().double().requires_grad_()
            (gradient,) = torch.autograd.grad(
                self.soft_finish(leaf[None], leaf.new_ones(1), side).sum(), leaf
            )
        return gradient


def _one_hot(top: Tensor, side: Side) -> Tensor:
    rows = torch.zeros(side.shape, dtype=torch.float64, device=top.device)
    return rows.scatter_(1, top, 1.0)


def _gini(sums: Tensor, *_: Any) -> Tensor:
    m = sums.shape[1]
    position = torch.arange(1, m + 1, device=sums.device, dtype=sums.dtype)
    return sums.sort(dim=1).values @ (2 * position - m - 1) / (m * sums.sum(1))


def _without_in_gini(top: Tensor, counts: Tensor) -> Tensor:
    # The first of the items with equal counts is lowered, which leaves the order as it is.
    (k, m), total = (top.shape[1], len(counts)), counts.sum()
    value = _gini(counts[None])
    own = counts[top]
    first = torch.searchsorted(counts.sort().values, own.contiguous()) + 1
    # Of r items with the same count the i-th is i places higher: r (r - 1) in the sum of 2 j.
    equal = (own[:, :, None] == own[:, None, :]).sum((1, 2)) - k
    lowered = value * m * total - (2 * first - m - 1).sum(1) - equal
    return value - lowered / (m * (total - k).clamp_min(1))


def _entropy(sums: Tensor, *_: Any) -> Tensor:
    q = sums / sums.sum(1, keepdim=True)
    return torch.special.entr(q.clamp_min(torch.finfo(q.dtype).tiny)).sum(1)  # 0 log 0 = 0


def _without_in_entropy(top: Tensor, counts: Tensor) -> Tensor:
    # Terms are taken out of log S - (1/S) Σ c log c, c the counts and S their sum.
    own, total = counts[top], counts.sum()
    weighed = torch.special.xlogy(counts, counts).sum()
    lost = torch.special.xlogy(own, own) - torch.special.xlogy(own - 1, own - 1)
    less = (total - top.shape[1]).clamp_min(1)
    return total.log() - weighed / total - (less.log() - (weighed - lost.sum(1)) / less)


def _log_missed(p: Tensor) -> Tensor:
    """The log-probability that an item is missed in a draw."""
    # p = 1 would make the logarithm infinite; the item is covered long before.
    return torch.log1p(-p.clamp_max(1 - 1e-6))


GINI = Exposure("gini", _gini, _without_in_gini, lower_is_better=True)
"""Gini index of exposure: Σ_j (2j - M - 1) x_(j) / (M Σ x), x ascending; 0 is equal.

The surrogate is the same on the mean catalogue distribution, differentiable wherever no two
items' exposures are equal.
"""
ENTROPY = Exposure(
    "entropy", _entropy, _without_in_entropy, lower_is_better=False, bounds=(0.0, math.inf)
)
"""Shannon entropy of exposure, -Σ q log q in nats, q the exposures divided by their sum."""
COVERAGE = Exposure(
    "coverage",
    lambda sums, total, side: (sums > 0).to(sums.dtype).mean(1),
    lambda top, counts: (counts[top] == 1).double().sum(1) / len(counts),
    _log_missed,
    soft_finish=lambda sums, total, side: -torch.expm1(side.k * sums).mean(1),
    lower_is_better=False,
)
"""Share of the catalogue in at least one list.

The surrogate is the share expected where every user draws K items, independently and with
replacement, from their catalogue softmax: 1 - Π_u (1 - p_ui)^K, averaged over the items.
"""
