"""The table of metrics: one file and one line here make a metric known everywhere.

Command line, objective, evaluation, conformance tests and docs read it.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from torch import Tensor

from fudlr.common.errors import FudlrError, UsageError
from fudlr.common.factors import Scores
from fudlr.metrics.accuracy import HIT_RATE, MRR, NDCG
from fudlr.metrics.attribute import DGU, DP, HELLINGER, HIT_GAP, MGU
from fudlr.metrics.base import Metric, repeated
from fudlr.metrics.popularity import APLT, ARP, COVERAGE, ENTROPY, GINI
from fudlr.metrics.scores import Rows
from fudlr.metrics.side import Side

_BUILT_IN = (
    ARP,
    APLT,
    GINI,
    COVERAGE,
    ENTROPY,
    HELLINGER,
    DP,
    HIT_GAP,
    MGU,
    DGU,
    HIT_RATE,
    NDCG,
    MRR,
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _BUILT_IN}
BUILT_IN = frozenset(METRICS)


class FunctionMetric(Metric):
    """A metric made of plain functions.

    Args:
        name: what the objective will call it.
        surrogate: (scores [n, M], side) to a scalar, differentiable in the scores.
        lower_is_better: its direction.
        hard: (top [n, K], side) to a scalar, where there is a value on lists too.
        factored: whether `surrogate` also takes `Factors`, which large catalogues' scores may be;
            otherwise it always gets the matrix.
    """

    def __init__(
        self,
        name: str,
        surrogate: Rows,
        lower_is_better: bool,
        hard: Rows | None = None,
        *,
        factored: bool = False,
    ) -> None:
        self.name, self.lower_is_better = name, lower_is_better
        self._soft, self._hard = surrogate, hard
        self.has_hard, self.factored = hard is not None, factored
        # Without a hard function the surrogate is all there is, and has the plain name.
        self.soft_suffix = "_soft" if hard else ""

    def hard(self, top: Tensor, side: Side, weights: Tensor | None = None) -> Tensor:
        """Return the value on the lists; whole `weights` repeat their rows."""
        if self._hard is None:
            raise UsageError(
                f"the value of {self.name!r} on top-K lists was asked for",
                "it was registered without a function for it",
                "Give from_function(..., hard=...)",
            )
        return self._hard(*repeated(top, side, weights))

    def surrogate(self, scores: Scores, side: Side) -> Tensor:
        """Return the user's function of the scores."""
        return self._soft(scores, side)


from_function = FunctionMetric


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
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(asked, "it is no Python file", "Name a .py file that calls register")
    try:
        # Not an import, whose cached bytecode would stand for a file of equal size and time.
        runpy.run_path(str(path), run_name=f"fudlr_metrics_{path.stem}")
    except FudlrError:
        raise
    except Exception as error:
        found = f"running it ended in {type(error).__name__}: {error}"
        raise UsageError(asked, found, "Mend the file; `python FILE` shows where") from error
    added = [name for name, metric in METRICS.items() if before.get(name) is not metric]
    if not added:
        remedy = "Call fudlr.metrics.register(metric) in it for each"
        raise UsageError(asked, "it registers none", remedy)
    return added


def find_metric(name: str) -> Metric:
    """Return the metric of that name.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    if name not in METRICS:
        known = f"Known: {', '.join(METRICS)}"
        raise UsageError(f"the metric {name!r} was asked for", "it is not known", known)
    return METRICS[name]
