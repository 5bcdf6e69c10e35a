"""All metrics of one model at once."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.metrics.base import Metric, Side, top_k
from fudlr.metrics.table import METRICS, FunctionMetric


def measurable(side: Side, metrics: Iterable[Metric] | None = None) -> list[Metric]:
    """Return the metrics, all of the table by default, whose needs `side` meets."""
    chosen = METRICS.values() if metrics is None else metrics
    return [metric for metric in chosen if metric.missing(side) is None]


def has_hard(metric: Metric) -> bool:
    """Whether there is a value on the top K; a user's function may have none."""
    return not isinstance(metric, FunctionMetric) or metric.has_hard


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
    hard = evaluate_lists(top_k(scores, side), side, metrics)
    scores = scores.detach()
    soft = {m.soft_key: float(m.surrogate(scores, side)) for m in measurable(side, metrics)}
    return hard | soft


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
