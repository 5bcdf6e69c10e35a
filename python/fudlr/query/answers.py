"""Influence of every training sample on figures of single prompts, by one solve and one pass.

    s_ij = the change of figure j when sample i is removed

the same influence as a request's, with other right-hand sides. A sample with s < 0 raised the
figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from fudlr.common.errors import DataError, UsageError
from fudlr.common.progress import StageClock
from fudlr.config import DebiasConfig
from fudlr.data import Samples
from fudlr.data.described import described
from fudlr.data.named import places
from fudlr.data.rows import RowSamples
from fudlr.gradients.metric import MetricGradient
from fudlr.metrics import top_k
from fudlr.pipeline.plan import collected_warnings, prepare, with_options
from fudlr.pipeline.request import solve
from fudlr.query.figures import FIGURES, LOSS, check_figure, contribution, gradients
from fudlr.query.prompts import to_samples
from fudlr.query.tokens import ASKED, token_table
from fudlr.run import Run

SIDES = ("raised", "lowered")


@dataclass(frozen=True)
class Answers:
    """What training samples did to k figures.

    Attributes:
        run: Whose training samples.
        prompts: The k prompts.
        of: The figure: `loss`, `score`, `rank`, or a metric.
        values: The figures with the trained adapter `[k]`.
        influence: Their change when a sample is removed, `[n, k]`.
        source: Where rows came from, as `summary.json` has it under `solver`.
        warnings: What a person should know.
        directions: H⁻¹ ∇F / n `[k, d]`, whose products with gradients at the trained adapter the
            influence is; None where it is made of recorded rows.
    """

    run: Run
    prompts: Samples
    of: str
    values: Tensor
    influence: Tensor
    source: str
    warnings: list[str]
    directions: Tensor | None = None

    def strongest(self, count: int) -> pl.DataFrame:
        """One row a sample that is among the `count` that raised or lowered a figure most.

        Columns: `prompt`, `side` (`raised` or `lowered`), `place` from 1, `influence` (of removing
        it), `value`, and what `described` says of the sample.
        """
        known = described(self.run.split.train)
        parts = []
        for at, column in enumerate(self.influence.T):
            for side, sign in zip(SIDES, (1, -1), strict=True):
                index = least(sign * column, count)
                index = index[sign * column[index] < 0]
                parts.append(
                    known[index.numpy()].select(
                        pl.lit(at).alias("prompt"),
                        pl.lit(side).alias("side"),
                        pl.int_range(1, pl.len() + 1).alias("place"),
                        pl.Series("influence", column[index].numpy()),
                        pl.lit(float(self.values[at])).alias("value"),
                        pl.all(),
                    )
                )
        return pl.concat(parts)

    def tokens(self, count: int) -> pl.DataFrame:
        """`strongest` with a row for every label token of a sample.

        Further columns: `position` from 0 among the label tokens, `token` as the tokenizer writes
        it, and `token_influence`, its part of `influence`; the parts add up to it.

        Raises:
            UsageError: The influence is of recorded rows, or the loss is not of label tokens.
        """
        if self.directions is None:
            raise UsageError(
                ASKED, f"the rows are from {self.source}", "Take gradients anew: rows=memory"
            )
        return token_table(self.run, self.strongest(count), self.directions)


def least(values: Tensor, count: int) -> Tensor:
    """Where the `count` least of `values` `[n]` are, rising, and equal ones by their place."""
    bound = values.topk(min(count, len(values)), largest=False).values[-1]
    index = (values <= bound).nonzero()[:, 0]
    return index[values[index].sort(stable=True).indices[:count]]


def query(
    run: Run,
    prompts: Samples | Sequence[Mapping[str, Any]],
    of: str = LOSS,
    config: DebiasConfig | None = None,
    **options: Any,
) -> Answers:
    """Influence of every training sample on a figure of each prompt.

    Args:
        run: From `load_run`, `train_run` or `adopt`; its model holds the trained adapter then.
        prompts: Samples, or rows as `query.prompts.to_samples` takes them.
        of: `loss`, `score` or `rank`; see `query.figures`.
        config: Options; the run's own where None. Those that choose samples have no effect.
        options: Single options that override the configuration: `rows="store"`.

    Raises:
        UsageError: An unknown figure, or a store was asked for that there is not.
        DataError: No prompts, or an id that the data do not have, with the nearest.
    """
    check_figure(of, metrics=False)
    samples = prompts if isinstance(prompts, Samples) else to_samples(run, prompts)
    if of in FIGURES and (samples.target < 0).any():
        raise UsageError(
            f"influence on the {of} of texts was asked for",
            "a text names no item that has one",
            "Ask for their loss, or give item_id and history",
        )
    config = with_options(config or run.config.debias, options)
    run.engine.load(run.theta)
    return _answers(run, samples, of, lambda: gradients(run, samples, of), config)


def explain(
    run: Run,
    user: Any,
    item: Any = None,
    of: str = "score",
    config: DebiasConfig | None = None,
    **options: Any,
) -> Answers:
    """Which training samples raised and lowered what a user's test prompt gives.

    Args:
        run: As of `query`.
        user: Id of a user with a test prompt.
        item: Id of an item that the user has not chosen yet; the best of the user's list where
            None, and without effect on a metric.
        of: `score`, `rank`, `loss`, or a metric: what the user contributes to it.
        config: As of `query`.
        options: As of `query`.

    Raises:
        DataError: An unknown user or item, with the nearest; a user without test prompt.
        UsageError: An unknown figure, or an item that the user has chosen before.
    """
    check_figure(of, metrics=True)
    asked, test, known = f"user {str(user)!r} was to be explained", run.test, run.interactions
    (number,) = places([user], known.users["user_id"].to_list(), "user", "the data")
    found = np.flatnonzero(test.samples.user == number)
    if not len(found):
        raise DataError(asked, "the user has no test prompt", "Name another user")
    prompt, at = test.take(found[:1]), int(found[0])
    config = with_options(config or run.config.debias, options)
    run.engine.load(run.theta)
    if of != LOSS and of not in FIGURES:
        return _answers(run, prompt.samples, of, lambda: [contribution(run, at, of)], config)
    if item is not None:
        (target,) = places([item], known.items["item_id"].to_list(), "item", "the data")
    else:
        scores = run.recommender.evaluate(prompt.samples, 1)[0]
        target = int(top_k(scores, prompt.side)[0, 0])
    if bool(prompt.side.mask[0, target]):
        raise UsageError(
            asked, f"item {str(item)!r} was chosen before, and is not recommended", "Name another"
        )
    samples = _with_target(run, prompt.samples, int(target), of)
    return _answers(run, samples, of, lambda: gradients(run, samples, of), config)


def _with_target(run: Run, prompt: Samples, target: int, of: str) -> Samples:
    """The one prompt with another target."""
    if not isinstance(prompt, RowSamples):
        ids = run.interactions.items["item_id"]
        row = {"history": ids.gather(prompt.history(0)).to_list(), "item_id": ids[target]}
        user = run.interactions.users["user_id"][int(prompt.user[0])]
        return to_samples(run, [{"user_id": user, **row}])
    if of == LOSS and target != prompt.target[0]:
        raise UsageError(
            "influence on the loss of another item was asked for",
            "the prompt is a row of live objects, whose labels are its own item's",
            "Ask for its score or rank, or give a row of that item to `fudlr.query`",
        )
    targets = prompt.table.target.copy()
    targets[prompt.position] = target
    return RowSamples(prompt.interactions, prompt.position, replace(prompt.table, target=targets))


def _answers(
    run: Run,
    samples: Samples,
    of: str,
    make: Callable[[], Sequence[MetricGradient]],
    config: DebiasConfig,
) -> Answers:
    """The figures' gradients are made once the rows are there: a bad store is refused first."""
    with collected_warnings() as said:
        plan = prepare(run, with_options(config, {"candidates": 1.0}), StageClock())
        solved = solve(plan, lambda: {str(at): each for at, each in enumerate(make())})
    anew = solved.evidence.source in ("memory", "stream")
    return Answers(
        run,
        samples,
        of,
        torch.tensor([each.value for each in solved.gradients.values()], dtype=torch.float64),
        solved.influence.values.cpu(),
        solved.evidence.source,
        [*said, *solved.evidence.warnings, *solved.influence.warnings],
        solved.influence.solution.x / solved.evidence.space.total if anew else None,
    )
