"""What is asked about, a figure of one prompt each, and its gradients.

    loss   the recommender's own, of the prompt's target
    score  log p(target), p the softmax of the scores over the unseen items
    rank   1 + Σ_{j ≠ target, unseen} σ(s_j − s_target), a smooth rank

or a metric by its name: what the prompt's scores contribute to its surrogate over all test prompts,
the others' being constants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.common.factors import Scores, dense, remade, rows_of
from fudlr.data import Samples
from fudlr.gradients.metric import MetricGradient, metric_gradients
from fudlr.metrics import METRICS, find_metric, surrogate
from fudlr.run import Run
from fudlr_ext.reducers import Rows

LOSS = "loss"
TOGETHER = 16
"""Prompts whose scores are differentiated in one pass: each takes a backward pass of its own."""


def log_probability(scores: Tensor, target: Tensor) -> Tensor:
    """Of the target among items with scores `[m]`, −∞ where seen."""
    return scores.log_softmax(0)[target]


def smooth_rank(scores: Tensor, target: Tensor) -> Tensor:
    """Of the target among items with scores `[m]`, −∞ where seen."""
    return 0.5 + (scores - scores[target]).sigmoid().sum()


FIGURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "score": log_probability,
    "rank": smooth_rank,
}
"""Of the scores over the catalogue."""


@dataclass(frozen=True)
class _OfRow:
    """A figure of the prompt `at`, as `metric_gradients` asks for metrics."""

    name: str
    at: int
    figure: Callable[[Tensor, Tensor], Tensor]
    factored: bool = True

    def surrogate(self, scores: Scores, side: Any) -> Tensor:
        own = dense(scores[self.at : self.at + 1])[0].double()
        own = own.masked_fill(side.seen[self.at], -torch.inf)
        return self.figure(own, side.target[self.at])


@dataclass(frozen=True)
class _Contribution:
    """A metric in which the scores of the prompt `at` alone can move."""

    name: str
    at: int
    metric: Any
    factored: bool = True

    def surrogate(self, scores: Scores, side: Any) -> Tensor:
        rows = rows_of(scores)
        live = torch.arange(len(rows), device=rows.device) == self.at
        moving = torch.where(live[:, None], rows, rows.detach())
        return surrogate(self.metric, remade(scores, moving), side)


def check_figure(of: str, *, metrics: bool) -> None:
    """Refuse what cannot be asked about.

    Raises:
        UsageError: `of` is no figure, and no metric or metrics are not taken.
    """
    known = [LOSS, *FIGURES, *(METRICS if metrics else ())]
    if of not in known:
        raise UsageError(
            f"influence on {of!r} was asked for",
            "there is no figure of a prompt of that name",
            f"Choose one of {', '.join(known)}",
        )


def gradients(run: Run, samples: Samples, of: str) -> list[MetricGradient]:
    """Value and gradient `[d]` of the figure `of` of each prompt; the model must hold θ*.

    Raises:
        NumericalError: A value or gradient is not finite.
    """
    recommender, size = run.recommender, run.config.debias.batch
    found: list[MetricGradient] = []
    if of == LOSS:
        for batch in recommender.batches(samples, size):
            rows = Rows()
            losses = run.engine.reduce(recommender.forward, recommender.loss, batch, [rows])
            pairs = zip(losses.tolist(), rows.result().cpu(), strict=True)
            found += [MetricGradient(value, row) for value, row in pairs]
        return found
    for start in range(0, len(samples), TOGETHER):
        part = samples.take(slice(start, start + TOGETHER))
        side = SimpleNamespace(
            seen=torch.from_numpy(part.seen()), target=torch.from_numpy(part.target)
        )
        metrics: Any = [_OfRow(str(at), at, FIGURES[of]) for at in range(len(part))]
        options = {"validation_loss": False, "batch_size": size}
        found += metric_gradients(recommender, run.engine, part, side, metrics, **options).values()  # type: ignore[arg-type]
    return found


def contribution(run: Run, at: int, name: str) -> MetricGradient:
    """Of the test prompt `at` to a metric over all of them; the model must hold θ*."""
    metrics: Any = [_Contribution(name, at, find_metric(name))]
    test, size = run.test, run.config.debias.batch
    found = metric_gradients(
        run.recommender,
        run.engine,
        test.samples,
        test.side,
        metrics,
        validation_loss=False,
        batch_size=size,
    )
    return found[name]
