"""What is kept of scores: per prompt, enough for every metric under any weighting of the prompts.

Scores are [n prompts, M items]. A metric is a function of sums over prompts (`SummedMetric`), of
few numbers a prompt for most, of M numbers for the exposure of items (coverage, Gini, entropy). Of
the latter the list, and what the metric changes by where the prompt is left out, are kept. Scores
are read in tiles of rows, so that no second matrix of their size is ever made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.common.factors import Scores
from fudlr.metrics.base import Metric, SummedMetric, surrogate
from fudlr.metrics.popularity import Exposure
from fudlr.metrics.scores import check_scores, top_and_ties
from fudlr.metrics.side import Side
from fudlr.metrics.table import METRICS


@dataclass(frozen=True)
class Statistics:
    """Figures of one model's scores, and what resampling the prompts needs of them.

    Attributes:
        top: [n, K] int64, the lists.
        values: Every metric's native value, hard and soft, under the files' names.
        rows: By name, what a metric is a function of the sums of: [n, S] float64.
        leave_out: By name, for metrics of exposure: the value less the value without the prompt,
            [n] float64.
        tied: Share of the prompts in which an item that is not listed has the score of the last one
            that is: the items' ids decide there.
    """

    top: Tensor
    values: dict[str, float]
    rows: dict[str, Tensor]
    leave_out: dict[str, Tensor]
    tied: float = 0.0


def measurable(side: Side, metrics: Iterable[Metric] | None = None) -> list[Metric]:
    """Return the metrics, all of the table by default, whose needs `side` meets."""
    chosen = METRICS.values() if metrics is None else metrics
    return [metric for metric in chosen if metric.missing(side) is None]


@torch.no_grad()
def statistics(scores: Scores, side: Side, metrics: Iterable[Metric] | None = None) -> Statistics:
    """Measure scores [n, M] in one pass over tiles, and one more for metrics of exposure.

    Args:
        scores: [n, M], any floating type, or their factors.
        side: Of the same prompts and items.
        metrics: Which; all of the table by default. What needs groups that are not there is left
            out.

    Raises:
        UsageError: No prompts, shapes that do not fit, or users with fewer than K unseen items.
        NumericalError: Scores that are not finite.
    """
    n = len(side.target)
    if not n:
        raise UsageError("metrics were asked for", "there are no prompts", "Give at least one")
    if tuple(scores.shape) != side.shape:
        check_scores(scores, side)  # says what does not fit
    scores, chosen = scores.detach(), measurable(side, metrics)
    wide = [metric for metric in chosen if isinstance(metric, Exposure)]
    narrow = [m for m in chosen if isinstance(m, SummedMetric) and not isinstance(m, Exposure)]
    tops: list[Tensor] = []
    tied = 0
    rows: dict[str, list[Tensor]] = {metric.soft_key: [] for metric in narrow}
    sums: dict[str, Tensor] = {}
    for own, tile in _tiles(scores, side):
        top, ties = top_and_ties(own, tile)
        tops.append(top)
        tied += int(ties.sum())
        for metric in narrow:
            rows[metric.soft_key].append(metric.soft_each(own, tile).double())
        for exposure in wide:
            sums[exposure.name] = sums.get(exposure.name, 0.0) + exposure.soft_sums(own, tile)
    top = torch.cat(tops)
    joined = {key: torch.cat(parts) for key, parts in rows.items()}
    joined |= {metric.hard_key(side.k): metric.hard_rows(top, side) for metric in narrow}

    total = top.new_tensor([n], dtype=torch.float64)
    left: dict[str, Tensor] = {}
    values = _hard_values(top, side, chosen)
    for each in chosen:
        if isinstance(each, Exposure):
            found = each.soft_finish(sums[each.name][None], total, side)
            values[each.soft_key] = float(found)
            left[each.hard_key(side.k)] = each.leave_out(top, side)
        elif isinstance(each, SummedMetric):
            summed_rows = joined[each.soft_key].sum(0)[None]
            values[each.soft_key] = float(each.soft_finish(summed_rows, total, side))
        else:
            values[each.soft_key] = float(surrogate(each, scores, side))
    left |= _soft_leave_out(wide, sums, scores, side)
    return Statistics(top, values, joined, left, tied / n)


def _soft_leave_out(
    wide: list[Exposure], sums: dict[str, Tensor], scores: Scores, side: Side
) -> dict[str, Tensor]:
    """To first order, since a prompt is a small part of smooth sums: rows · ∂T/∂sums, [n]."""
    ways = {metric: metric.soft_gradient(sums[metric.name], side) for metric in wide}
    found: dict[str, list[Tensor]] = {metric.soft_key: [] for metric in wide}
    for own, tile in _tiles(scores, side) if wide else ():
        for metric, way in ways.items():
            found[metric.soft_key].append(metric.soft_product(own, tile, way).double())
    return {key: torch.cat(parts) for key, parts in found.items()}


def _tiles(scores: Scores, side: Side) -> Iterator[tuple[Scores, Side]]:
    """Tiles of a matrix, each one object for all metrics, so that they share its softmax; factors
    as they are, which are taken apart further down."""
    if isinstance(scores, Tensor):
        yield from ((scores[part], tile) for part, tile in side.tiles())
    else:
        yield scores, side


def _hard_values(top: Tensor, side: Side, chosen: list[Metric]) -> dict[str, float]:
    return {m.hard_key(side.k): float(m.hard(top, side)) for m in chosen if m.has_hard}


def evaluate(
    scores: Scores, side: Side, metrics: Iterable[Metric] | None = None
) -> dict[str, float]:
    """Measure the scores [n, M]: native values, hard and soft, under the files' names.

    Returns:
        `arp`, `hellinger@10`, ... on the top K, and `arp_soft`, `hellinger`, ... on the catalogue
        softmax; arguments and errors are those of `statistics`.
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
    return _hard_values(top, side, measurable(side, metrics))
