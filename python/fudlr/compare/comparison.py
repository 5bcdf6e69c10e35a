"""`fudlr compare`: every rival on the same trained adapter, judged on users that did not steer it.

A rival that uses gradients of validation users is run twice, steered by either half of them, and
judged on the other half; the halves are joined before anything is measured. The others have nothing
to hold out. Of a rival's points one stands in the table: of those as accurate as our own on the
validation prompts *that steered it*, within `NEAR`, the one that is best on the steered metric
there; where there is none, the nearest in accuracy, marked. The plot has all points.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr.common.digest import digest
from fudlr.common.errors import UsageError
from fudlr.common.factors import dense
from fudlr.common.kept import kept_json
from fudlr.compare import rankers, retrained, updates
from fudlr.compare.base import Cost, Point, Rival, Setting
from fudlr.config import DebiasConfig
from fudlr.data import holdout_users
from fudlr.debias import plain_nulls
from fudlr.evaluation import Prompts
from fudlr.metrics import (
    METRICS,
    Statistics,
    bootstrap,
    evaluate,
    permutation_null,
    statistics,
)
from fudlr.run import Run

RIVALS: dict[str, Rival] = {
    rival.name: rival
    for rival in (
        retrained.OURS,
        retrained.RETRAINED,
        retrained.RANDOM,
        retrained.POPULAR,
        retrained.INVERSE_POPULARITY,
        retrained.ITEM_SIDE,
        updates.ASCENT,
        updates.ERASER,
        updates.FINE_TUNING,
        rankers.PENALTY,
        rankers.XQUAD,
        rankers.CALIBRATION,
        rankers.MOST_POPULAR,
    )
}
"""In the order of tables; our own first."""
NEAR = 0.02
"""Relative difference in NDCG within which two points are equally accurate: well below what an
interval over a thousand users can tell apart."""
KEPT = 0.95
"""Share of the trained adapter's NDCG that is comparable where our own is not in the table."""


class Comparison:
    """One comparison.

    Args:
        run: Trained.
        config: Objective, budget and λ's.
        out: Where finished rivals and retrainings are kept.
        processes: Workers for retraining.
        divergences: Whether those from retraining without our masks are wanted.
    """

    def __init__(
        self,
        run: Run,
        config: DebiasConfig,
        out: Path | None = None,
        processes: int = 1,
        divergences: bool = True,
    ) -> None:
        self.run, self.config, self.out, self.divergences = run, config, out, divergences
        kept = None if out is None else out / "retrainings"
        self.whole = Setting(run, config, kept, processes)  # of rivals that no user steers
        first = METRICS[self.whole.objective.names[0]]
        self.steered, self.lower_is_better = (
            first.hard_key(self.run.test.side.k),
            first.lower_is_better,
        )
        self.ndcg = METRICS["ndcg"].hard_key(self.run.test.side.k)
        self._points: dict[str, list[list[Point]]] = {}

    @cached_property
    def parts(self) -> list[tuple[Setting, Tensor, Tensor]]:
        """(setting, its users, the others) of both halves."""
        split, found = self.run.split, []
        drawn = holdout_users(split.valid, 0.5, self.run.config.seed)
        halves = [torch.from_numpy(each) for each in drawn]
        for own, other in (halves, halves[::-1]):
            run = replace(self.run, split=replace(split, valid=split.valid.take(own.numpy())))
            found.append((replace(self.whole, run=run, _results={}), own, other))
        return found

    @cached_property
    def trained(self) -> tuple[Tensor, Tensor, Statistics]:
        """Scores of the adapter as it is on test and validation prompts, and figures."""
        test, valid = self._of(Point(""))
        return test, valid, statistics(test, self.run.test.side)

    @cached_property
    def truth(self) -> Tensor | None:
        """Log-probabilities [n, M] of the adapters retrained without our masks, joined."""
        if not self.divergences:
            return None
        _, test, _ = next(self.scores(retrained.RETRAINED))
        return self._log(test)

    def scores(self, rival: Rival) -> Iterator[tuple[Point, Tensor, Tensor]]:
        """Each point with scores [n, M] on test and on steering prompts, halves joined."""
        if rival.name not in self._points:
            settings = [each for each, _, _ in self.parts] if rival.uses_users else [self.whole]
            self._points[rival.name] = [rival.points(setting) for setting in settings]
        for point, *other in zip(*self._points[rival.name], strict=True):
            test, valid = self._of(point)
            if other:
                (_, first, second), _ = self.parts
                test_other, valid_other = self._of(other[0])
                test[first], valid[second] = test_other[first], valid_other[second]
                mean = Cost(*(each / 2 for each in point.cost.plus(other[0].cost)))
                yield replace(point, cost=mean), test, valid
            else:
                yield point, test, valid

    def record_of(self, rival: Rival) -> dict[str, Any]:
        """The rival's points as plain data; read where they are kept."""
        path = None
        if self.out is not None:
            parts = self.config.model_dump(mode="json"), self.run.theta, self.divergences
            slug = re.sub(r"\W+", "-", rival.name).strip("-")
            path = self.out / "rivals" / f"{slug}-{digest(*parts)[:12]}.json"
        return kept_json(
            path,
            lambda: {
                "about": rival.about,
                "uses_users": rival.uses_users,
                "names_samples": rival.names_samples,
                "points": [self._plain(*each) for each in self.scores(rival)],
            },
        )

    def head(self) -> dict[str, Any]:
        """The trained adapter's own row, and what permuted groups give."""
        test, valid, found = self.trained
        null = permutation_null(found, self.run.test.side, seed=self.run.config.seed)
        return {
            "objective": self.config.objective,
            "steered": self.steered,
            "lower_is_better": self.lower_is_better,
            "budget": self.config.budget,
            "samples": len(self.run.split.train),
            "training_seconds": self.run.train_seconds,
            "trained": found.values,
            "trained_steering": evaluate(valid, self.run.valid.side),
            "trained_kl_to_retrained": self._distance(test),
            "null": plain_nulls(null),
        }

    def _of(self, point: Point) -> tuple[Tensor, Tensor]:
        """Scores [n, M] of the point on test and on validation prompts."""

        def scores(prompts: Prompts) -> Tensor:
            found, _ = self.run.recommender.evaluate(prompts.samples, self.config.batch)
            matrix = dense(found)  # rankers add to single scores
            return matrix if point.ranker is None else point.ranker(matrix, prompts)

        self.run.engine.load(self.run.theta if point.theta is None else point.theta)
        both = scores(self.run.test), scores(self.run.valid)
        self.run.engine.load(self.run.theta)
        return both

    def _plain(self, point: Point, test: Tensor, valid: Tensor) -> dict[str, Any]:
        side, found = self.run.test.side, statistics(test, self.run.test.side)
        steering = evaluate(valid, self.run.valid.side)
        pair = {"before": self.trained[2], "after": found}
        drawn = bootstrap(pair, side, seed=self.run.config.seed)["after - before"]
        hard = {metric.hard_key(side.k) for metric in METRICS.values()}
        names = [name for name in found.values if point.soft or name in hard]
        return {
            "strength": point.strength,
            **point.cost._asdict(),
            "steering": {name: steering[name] for name in (self.steered, self.ndcg)},
            "figures": {name: found.values[name] for name in names},
            "change": {name: list(drawn[name][1:]) for name in names if name in drawn},
            "kl_to_retrained": self._distance(test) if point.soft else None,
        }

    def _distance(self, scores: Tensor) -> float | None:
        """Mean over test prompts of KL(retrained without our mask ‖ these scores), in nats."""
        if self.truth is None:
            return None
        gap = self.truth - self._log(scores)
        kl = torch.where(self.truth.isfinite(), self.truth.exp() * gap, 0.0).sum(1)
        return float(kl.mean())

    def _log(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(self.run.test.side.mask, -torch.inf).log_softmax(1)


def choose(head: Mapping[str, Any], rivals: Mapping[str, dict[str, Any]], ndcg: str) -> None:
    """Say in each rival's record which of its points stands in the table, and how it compares.

    Args:
        head: From `Comparison.head`.
        rivals: Records by name; `chosen`, `comparable` and `intervals` are added.
        ndcg: NDCG's name in the figures.
    """
    reference = KEPT * head["trained_steering"][ndcg]
    if ours := rivals.get(retrained.OURS.name):
        reference = ours["points"][retrained.CONFIGURED]["steering"][ndcg]
    sign = 1 if head["lower_is_better"] else -1
    for record in rivals.values():
        points = [point["steering"] for point in record["points"]]
        off = [abs(point[ndcg] - reference) for point in points]
        fit = [i for i, each in enumerate(off) if each <= NEAR * abs(reference)]
        record["comparable"] = bool(fit)
        nearest = off.index(min(off))
        best = min(fit, key=lambda i: sign * points[i][head["steered"]], default=nearest)
        record["chosen"] = best
        record["intervals"] = {"change": record["points"][best]["change"]}


def find_rivals(names: Sequence[str]) -> list[str]:
    """The rivals meant, whatever their case; most-popular is always among them.

    Raises:
        UsageError: A rival that is not in the table; the message offers those that are close.
    """
    known = {name.casefold(): name for name in RIVALS}
    for name in names:
        if name.casefold() not in known:
            near = get_close_matches(name.casefold(), known, n=3, cutoff=0.4)
            words = ", ".join(known[each] for each in near) or ", ".join(RIVALS)
            raise UsageError(
                f"a comparison with {name!r} was asked for",
                "there is no rival of that name",
                f"{'Did you mean' if near else 'Choose from'}: {words}",
            )
    wanted = {known[name.casefold()] for name in names} | {rankers.MOST_POPULAR.name}
    return [name for name in RIVALS if name in wanted]


def compare_run(
    run: Run,
    config: DebiasConfig | None = None,
    out: Path | None = None,
    rivals: Sequence[str] | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Compare rivals on the run's trained adapter; the record of all of them, as plain data.

    Args:
        run: From `load_run`; its model holds the trained adapter afterwards.
        config: Objective, budget and λ's; the run's own where None.
        out: Where finished rivals and retrainings are kept, so that a second call goes on.
        rivals: Names in `RIVALS`, in any case; all of them by default.
        processes: Workers for retraining.

    Raises:
        UsageError: A rival that is not in the table.
    """
    names = find_rivals(rivals or list(RIVALS))
    run.engine.load(run.theta)
    truth = retrained.RETRAINED.name in names
    whole = Comparison(run, config or run.config.debias, out, processes, truth)
    whole.whole.objective.check(run.valid.side)
    records = {name: whole.record_of(RIVALS[name]) for name in names}
    head = whole.head()
    choose(head, records, whole.ndcg)
    return {**head, "rivals": records}
