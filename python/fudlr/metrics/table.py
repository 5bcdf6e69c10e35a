"""The table of metrics: one file and one line here make a metric known everywhere.

Command line, objective, evaluation, conformance tests and docs read it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fudlr.common.errors import FudlrError, UsageError
from fudlr.metrics.accuracy import MRR, NDCG, HitRate
from fudlr.metrics.attribute import (
    DemographicParity,
    DisparityOfGroupUnfairness,
    Hellinger,
    HitGap,
    MeanGroupUnfairness,
)
from fudlr.metrics.base import Metric, Side
from fudlr.metrics.popularity import (
    AveragePercentageOfLongTail,
    AverageRecommendationPopularity,
    Coverage,
    Entropy,
    Gini,
)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        AverageRecommendationPopularity(),
        AveragePercentageOfLongTail(),
        Gini(),
        Coverage(),
        Entropy(),
        Hellinger(),
        DemographicParity(),
        HitGap(),
        MeanGroupUnfairness(),
        DisparityOfGroupUnfairness(),
        HitRate(),
        NDCG(),
        MRR(),
    )
}

BUILT_IN = frozenset(METRICS)

Soft = Callable[[Tensor, Side], Tensor]
Hard = Callable[[Tensor, Side], Tensor]


class FunctionMetric(Metric):
    """A user's own metric, made of plain functions; see `from_function`."""

    def __init__(self, name: str, soft: Soft, lower_is_better: bool, hard: Hard | None) -> None:
        self.name = name
        self.lower_is_better = lower_is_better
        self._soft = soft
        self._hard = hard
        # Without a hard function the surrogate is all there is, and has the plain name.
        self.soft_suffix = "_soft" if hard else ""

    @property
    def has_hard(self) -> bool:
        """Whether there is a value on the top K."""
        return self._hard is not None

    def hard(self, top: Tensor, side: Side, weights: Tensor | None = None) -> Tensor:
        """Return the value on the lists; whole `weights` repeat their rows."""
        if self._hard is None:
            raise UsageError(
                f"the value of {self.name!r} on top-K lists was asked for",
                "it was registered without a function for it",
                "Give from_function(..., hard=...)",
            )
        if weights is not None:
            index = torch.arange(len(top), device=top.device).repeat_interleave(weights.long())
            top, side = top[index], side.take(index)
        return self._hard(top, side)

    def surrogate(self, scores: Tensor, side: Side) -> Tensor:
        """Return the user's function of the scores."""
        return self._soft(scores, side)


def from_function(
    name: str, surrogate: Soft, lower_is_better: bool, hard: Hard | None = None
) -> Metric:
    """Make a metric of a function.

    Args:
        name: what the objective will call it.
        surrogate: (scores [n, M], side) to a scalar, differentiable in the scores.
        lower_is_better: its direction.
        hard: (top [n, K], side) to a scalar, where there is a value on lists too.
    """
    return FunctionMetric(name, surrogate, lower_is_better, hard)


def register(metric: Metric, *, replace: bool = False) -> Metric:
    """Put a metric into the table, and return it.

    Args:
        metric: its name is how objectives and files write it.
        replace: whether it may take the place of an own metric of that name, as when a notebook's
            cell is run again.

    Raises:
        UsageError: a name that is taken, or that an objective could not be written with.
    """
    asked = f"a metric was to be registered as {metric.name!r}"
    if not re.fullmatch(r"[A-Za-z_]\w*", metric.name):
        found = "it is not a plain name"
        raise UsageError(asked, found, "Choose one of letters, digits and underscores")
    if metric.name in BUILT_IN or (metric.name in METRICS and not replace):
        again = "" if metric.name in BUILT_IN else ", or give replace=True"
        raise UsageError(asked, "the name is taken", f"Choose another one{again}")
    METRICS[metric.name] = metric
    return metric


def load_metrics(path: Path) -> list[str]:
    """Run a Python file of one's own that registers metrics; returns their names.

    The file is run with all rights of the caller, as `python FILE` would run it.

    Raises:
        UsageError: there is no such file, it fails, or it registers nothing.
    """
    asked = f"metrics were to be read from {path}"
    before = dict(METRICS)
    spec = importlib.util.spec_from_file_location(f"fudlr_metrics_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(asked, "it is no Python file", "Name a .py file that calls register")
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except FudlrError:
        raise
    except Exception as error:
        found = f"running it ended in {type(error).__name__}: {error}"
        raise UsageError(asked, found, "Mend the file; `python FILE` shows where") from error
    added = [name for name, metric in METRICS.items() if before.get(name) is not metric]
    if not added:
        raise UsageError(
            asked, "it registers none", "Call fudlr.metrics.register(metric) in it for each"
        )
    return added


def find_metric(name: str) -> Metric:
    """Return the metric of that name.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    if name not in METRICS:
        raise UsageError(
            f"the metric {name!r} was asked for", "it is not known", f"Known: {', '.join(METRICS)}"
        )
    return METRICS[name]
