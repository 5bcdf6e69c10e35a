"""A metric of some of the prompts alone: F_c(scores) = F(scores of the prompts in c).

∂F_c/∂scores is zero outside of c, so that the gradients for disjoint sets of users cost together
about what one metric's does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.metrics.base import Metric, Side


class Within(Metric):
    """`metric` on the prompts of one set of users.

    Args:
        metric: Of any prompts.
        member: [n] bool, which of the prompts count.
        label: The set's name; the metric is called `name[label]`.
    """

    def __init__(self, metric: Metric, member: Tensor, label: str) -> None:
        self.metric, self.index = metric, member.nonzero().flatten()
        self.name = f"{metric.name}[{label}]"
        self.lower_is_better = metric.lower_is_better
        self.needs_groups = metric.needs_groups

    def hard(self, top: Tensor, side: Side, weights: Tensor | None = None) -> Tensor:
        """The value on the lists `top` [n, K] of the set's prompts."""
        chosen = None if weights is None else weights[self.index]
        return self.metric.hard(top[self.index], side.take(self.index), chosen)

    def surrogate(self, scores: Tensor, side: Side) -> Tensor:
        """A scalar, differentiable in `scores` [n, M]."""
        return self.metric.surrogate(scores[self.index], side.take(self.index))

    def missing(self, side: Side) -> str | None:
        """What the metric lacks on the set's prompts, or None."""
        return self.metric.missing(side.take(self.index))

    def ordered(self, order: Tensor) -> Within:
        """The same for the prompts in another order: [n] int64, the prompt that stands there."""
        member = torch.zeros(len(order), dtype=torch.bool)
        member[self.index] = True
        same = Within(self.metric, member[order], "")
        same.name = self.name
        return same
