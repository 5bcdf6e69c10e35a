"""What every metric shares: its two faces, and for most that it is a function of sums.

A metric has a hard value, on the top K that users see, and a differentiable surrogate, on the
softmax over the catalogue, whose gradient tells which training samples raise or lower it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fudlr.common.factors import Factors, Scores, dense
from fudlr.metrics.scores import Rows, by_tiles, check_scores
from fudlr.metrics.side import Side


class Metric(ABC):
    """A hard metric on the top K and its differentiable surrogate, side by side.

    Class attributes:
        name: as the objective and the files write it.
        lower_is_better: the direction that is fairer, or more accurate.
        needs_groups: whether it compares groups of users.
        needs_items: whether it needs groups of items.
        needs_history: whether it also compares them with users' histories.
        at_k: whether the hard value is written as `name@K` or as `name`.
        has_hard: whether there is a value on the top K; a user's function may have none.
        soft_suffix: what the surrogate's name in the files adds to `name`; empty where the
            surrogate is the same measure on the whole catalogue.
        bounds: the least and the largest value there can be, hard or soft.
        factored: whether its functions of scores take `Factors` as well. Where they do not, a
            metric of sums over prompts gets the matrix in tiles, and any other all of it.
    """

    name: str
    lower_is_better: bool
    needs_groups: bool = False
    needs_items: bool = False
    needs_history: bool = False
    at_k: bool = False
    has_hard: bool = True
    soft_suffix: str = "_soft"
    bounds: tuple[float, float] = (-math.inf, math.inf)
    factored: bool = False

    @abstractmethod
    def hard(self, top: Tensor, side: Side, weights: Tensor | None = None) -> Tensor:
        """Return the value on the lists `top` [n, K]; `weights` [n] repeats prompts."""

    @abstractmethod
    def surrogate(self, scores: Tensor, side: Side) -> Tensor:
        """Return a scalar, differentiable in `scores` [n, M]."""

    def missing(self, side: Side) -> str | None:
        """Say what the metric needs and `side` lacks, or None."""
        items = side.item_groups is not None and side.item_groups.shape[1] > 1
        if self.needs_history and not (items and side.history_groups is not None):
            return "it compares item groups with users' histories, and one of them is missing"
        if self.needs_items and not items:
            return "it compares item groups, and the items have none"
        present = side.user_group[side.user_group >= 0].unique().numel()
        if self.needs_groups and present < 2:
            return f"it compares groups of users, and the prompts have {present}"
        return None

    @property
    def is_mean(self) -> bool:
        """Whether the surrogate is a mean over prompts, and so its gradient."""
        return False

    def hard_key(self, k: int) -> str:
        """Return the hard value's name in the files."""
        return f"{self.name}@{k}" if self.at_k else self.name

    @property
    def soft_key(self) -> str:
        """The surrogate's name in the files."""
        return self.name + self.soft_suffix


Finish = Callable[[Tensor, Tensor, Side], Tensor]
"""(sums [R, S], total weights [R], side) to the metric, [R]."""


def mean(sums: Tensor, total: Tensor, side: Side) -> Tensor:
    """The mean over prompts of rows [n, 1]."""
    return sums[:, 0] / total


class SummedMetric(Metric):
    """A metric that is a function of weighted sums over prompts, as all built-in ones are.

    So one matrix product gives the metric for any number of weightings, which makes bootstrap
    intervals cheap.

    Args:
        name: As the objective and the files write it.
        hard_rows: What is to be summed, from the top K: [n, S] float64.
        soft_rows: The same from the catalogue softmax: differentiable.
        finish: Turns sums into the metric.
        attributes: Those of `Metric`, where they are not its defaults.
    """

    def __init__(
        self, name: str, hard_rows: Rows, soft_rows: Rows, finish: Finish = mean, **attributes: Any
    ) -> None:
        self.name, self.bounds = name, (0.0, 1.0)
        self.hard_rows, self.soft_rows, self.finish = hard_rows, soft_rows, finish
        self.soft_finish = finish
        for attribute, value in attributes.items():
            setattr(self, attribute, value)

    @property
    def is_mean(self) -> bool:
        """Whether the surrogate is a mean over prompts, and so its gradient."""
        return self.soft_finish is mean

    def hard_sums(self, top: Tensor, side: Side, weights: Tensor) -> Tensor:
        """Sum the hard rows with each of `weights` [R, n]: [R, S]."""
        return weights @ self.hard_rows(top, side)

    def hard_many(self, top: Tensor, side: Side, weights: Tensor) -> Tensor:
        """Return the hard value under each of `weights` [R, n]: [R] float64."""
        weights = weights.double()
        return self.finish(self.hard_sums(top, side, weights), weights.sum(1), side)

    def soft_each(self, scores: Scores, side: Side) -> Tensor:
        """Return the soft rows of scores in either form: [n, S]."""
        if isinstance(scores, Factors) and not self.factored:
            return by_tiles(self.soft_rows, scores, side)
        return self.soft_rows(scores, side)

    def soft_sums(self, scores: Scores, side: Side) -> Tensor:
        """Return the soft rows' sums over prompts: [S]."""
        return self.soft_each(scores, side).sum(0)

    def soft_many(self, scores: Scores, side: Side, weights: Tensor) -> Tensor:
        """Return the surrogate under each of `weights` [R, n]: [R]."""
        rows = self.soft_each(scores, side)
        weights = weights.to(rows.dtype)
        return self.soft_finish(weights @ rows, weights.sum(1), side)

    def hard(self, top: Tensor, side: Side, weights: Tensor | None = None) -> Tensor:
        """Return the value on the lists `top` [n, K]; `weights` [n] repeats prompts."""
        if weights is None:
            weights = torch.ones(len(top), device=top.device)
        return self.hard_many(top, side, weights[None])[0]

    def surrogate(self, scores: Scores, side: Side) -> Tensor:
        """Return a scalar, differentiable in `scores` [n, M], or in the users of factors."""
        check_scores(scores, side)
        ones = torch.ones(1, len(scores), device=side.target.device)
        return self.soft_many(scores, side, ones)[0]


def surrogate(metric: Any, scores: Scores, side: Side) -> Tensor:
    """The metric's surrogate of scores in whichever form it takes."""
    takes = isinstance(metric, SummedMetric) or getattr(metric, "factored", False)
    found: Tensor = metric.surrogate(scores if takes else dense(scores), side)
    return found


def repeated(top: Tensor, side: Side, weights: Tensor | None) -> tuple[Tensor, Side]:
    """Lists and side with each prompt as often as its whole weight [n] says."""
    if weights is None:
        return top, side
    index = torch.arange(len(top), device=top.device).repeat_interleave(weights.long())
    return top[index], side.take(index)
