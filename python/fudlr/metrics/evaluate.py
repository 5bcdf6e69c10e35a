"""All metrics of one model at once."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.metrics.base import Metric, Side
from fudlr.metrics.statistics import has_hard, measurable, statistics


def evaluate(
    scores: Tensor, side: Side, metrics: Iterable[Metric] | None = None
) -> dict[str, float]:
    """Measure the scores [n, M]: native values, hard and soft, under the files' names.

    Args:
        scores: [n, M], any floating type.
        side: of the same prompts and items.
        metrics: which; all of the table by default. What needs groups that are not there is left
            out.

    Returns:
        `arp`, `hellinger@10`, ... on the top K, and `arp_soft`, `hellinger`, ... on the catalogue
        softmax.

    Raises:
        UsageError: no prompts, shapes that do not fit, or users with fewer than K unseen items.
        NumericalError: scores that are not finite.
    """
    return statistics(scores, side, metrics).values


def evaluate_lists(
    top: Tensor, side: Side, metrics: Iterable[Metric] | None = None
) -> dict[str, float]:
    """Measure the lists [n, K] int64, best first: hard values alone, under the files' names.

    Raises:
        UsageError: no prompts.
    """
    if not len(side.target):
        raise UsageError("metrics were asked for", "there are no prompts", "Give at least one")
    chosen = measurable(side, metrics)
    return {m.hard_key(side.k): float(m.hard(top, side)) for m in chosen if has_hard(m)}
