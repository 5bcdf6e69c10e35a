"""`fudlr compare`: every rival on the same trained adapter, judged on users that did not steer it.

A rival that uses gradients of validation users is run twice, steered by either half of them, and
judged on the other half; the halves are joined before anything is measured. The others have nothing
to hold out. Of a rival's points one stands in the table: of those as accurate as our own on the
validation prompts *that steered it*, within `NEAR`, the one that is best on the steered metric
there; where there is none, the nearest in accuracy, marked. The plot has all points.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr.common.digest import digest
from fudlr.common.errors import UsageError
from fudlr.common.files import write_json
from fudlr.compare.base import Point, Rival, Setting
from fudlr.compare.most_popular import RIVAL as MOST_POPULAR
from fudlr.compare.ours import CLOSED_FORM, CONFIGURED, RETRAINED
from fudlr.compare.table import RIVALS
from fudlr.config import DebiasConfig
from fudlr.data import holdout_users
from fudlr.evaluation import Prompts, make_prompts
from fudlr.metrics import (
    METRICS,
    Objective,
    Statistics,
    bootstrap,
    evaluate,
    permutation_null,
    statistics,
)
from fudlr.run import Run

NEAR = 0.02
"""Relative difference in NDCG within which two points are equally accurate: well below what an
interval over a thousand users can tell apart."""
KEPT = 0.95
"""Share of the trained adapter's NDCG that is comparable where our own is not in the table."""


@dataclass
class Judged:
    """A point with its figures.

    Attributes:
        point: What was judged.
        test: Statistics of its scores on test prompts.
        steering: Figures on the prompts that steered it.
        kl: Mean divergence from retraining, in nats; None for lists, or without a retraining.
    """

    point: Point
    test: Statistics
    steering: dict[str, float]
    kl: float | None


@dataclass
class Comparison:
    """One comparison.

    Attributes:
        run: Trained.
        config: Objective, budget and λ's.
        out: Where finished rivals and retrainings are kept.
        processes: Workers for retraining.
        retrained: Whether divergences from retraining without our masks are wanted.
    """

    run: Run
    config: DebiasConfig
    out: Path | None = None
    processes: int = 1
    retrained: bool = True
    _points: dict[str, list[list[Point]]] = field(default_factory=dict)

    @cached_property
    def valid(self) -> Prompts:
        """All validation prompts."""
        return make_prompts(self.run.split, self.run.split.valid, self.run.config.data)

    @cached_property
    def test(self) -> Prompts:
        """All test prompts."""
        return make_prompts(self.run.split, self.run.split.test, self.run.config.data)

    @cached_property
    def whole(self) -> Setting:
        """The setting of rivals that no user steers."""
        return Setting(self.run, self.config, self._kept, self.processes)

    @cached_property
    def parts(self) -> list[tuple[Setting, Tensor, Tensor]]:
        """(setting, its users, the others) of both halves."""
        halves = [
            torch.from_numpy(h) for h in holdout_users(self.run.split.valid, 0.5, self.config.seed)
        ]
        found = []
        for own, other in (halves, halves[::-1]):
            split = replace(self.run.split, valid=self.run.split.valid.take(own.numpy()))
            setting = Setting(
                replace(self.run, split=split), self.config, self._kept, self.processes
            )
            found.append((setting, own, other))
        return found

    @cached_property
    def trained(self) -> Judged:
        """The trained adapter as it is."""
        test, valid = self._of(Point(""))
        return self._judge(Point(""), test, valid)

    @cached_property
    def truth(self) -> Tensor | None:
        """Log-probabilities [n, M] of the adapters retrained without our masks, joined."""
        if not self.retrained:
            return None
        _, test, _ = next(self.scores(RETRAINED))
        return self._log(test)

    @property
    def steered(self) -> str:
        """The metric that the table chooses by: the objective's first, on the lists."""
        return METRICS[Objective.parse(self.config.objective).names[0]].hard_key(self.test.side.k)

    @property
    def lower_is_better(self) -> bool:
        """Its direction."""
        return METRICS[Objective.parse(self.config.objective).names[0]].lower_is_better

    @property
    def ndcg(self) -> str:
        """NDCG's name in the figures."""
        return METRICS["ndcg"].hard_key(self.test.side.k)

    def points(self, rival: Rival) -> list[list[Point]]:
        """The rival's points; one list for each half where users steer it."""
        if rival.name not in self._points:
            settings = [each for each, _, _ in self.parts] if rival.uses_users else [self.whole]
            self._points[rival.name] = [rival.points(setting) for setting in settings]
        return self._points[rival.name]

    def scores(self, rival: Rival) -> Iterator[tuple[Point, Tensor, Tensor]]:
        """Each point with scores [n, M] on test and on steering prompts, halves joined."""
        for point, *other in zip(*self.points(rival), strict=True):
            test, valid = self._of(point)
            if not other:
                yield point, test, valid
                continue
            (_, first, second), _ = self.parts
            test_other, valid_other = self._of(other[0])
            test[first], valid[second] = test_other[first], valid_other[second]
            cost = {n: (v + other[0].spent(n)) / 2 for n, v in point.cost.items()}
            yield replace(point, cost=cost), test, valid

    def record_of(self, rival: Rival) -> dict[str, Any]:
        """The rival's points as plain data; read where they are kept."""
        kept = self._rival_file(rival)
        if kept is not None and kept.is_file():
            found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
            return found
        judged = [self._judge(*each) for each in self.scores(rival)]
        record = {
            "about": rival.about,
            "uses_users": rival.uses_users,
            "names_samples": rival.names_samples,
            "points": [self._plain(each) for each in judged],
        }
        if kept is not None:
            write_json(kept, record)
        return record

    def head(self) -> dict[str, Any]:
        """The trained adapter's own row, and what permuted groups give."""
        null = permutation_null(self.trained.test, self.test.side, seed=self.config.seed)
        return {
            "objective": self.config.objective,
            "steered": self.steered,
            "lower_is_better": self.lower_is_better,
            "budget": self.config.budget,
            "samples": len(self.run.split.train),
            "training_seconds": self.run.train_seconds,
            "trained": self.trained.test.values,
            "trained_steering": self.trained.steering,
            "trained_kl_to_retrained": self.trained.kl,
            "null": {
                name: {"mean": n.mean, "interval": [n.low, n.high], "p": n.p_value}
                for name, n in null.items()
            },
        }

    def _judge(self, point: Point, test: Tensor, valid: Tensor) -> Judged:
        kl = self._distance(test) if point.soft and self.truth is not None else None
        steering = evaluate(valid, self.valid.side)
        return Judged(point, statistics(test, self.test.side), steering, kl)

    def _of(self, point: Point) -> tuple[Tensor, Tensor]:
        """Scores [n, M] of the point on test and on validation prompts."""
        self.run.engine.load(self.run.theta if point.theta is None else point.theta)
        both = []
        for prompts in (self.test, self.valid):
            scores, _ = self.run.recommender.evaluate(prompts.samples, self.config.batch)
            both.append(scores if point.ranker is None else point.ranker(scores, prompts))
        self.run.engine.load(self.run.theta)
        return both[0], both[1]

    def _plain(self, each: Judged) -> dict[str, Any]:
        pair = {"before": self.trained.test, "after": each.test}
        drawn = bootstrap(pair, self.test.side, seed=self.config.seed)["after - before"]
        hard = {metric.hard_key(self.test.side.k) for metric in METRICS.values()}
        names = [name for name in each.test.values if each.point.soft or name in hard]
        return {
            "strength": each.point.strength,
            "seconds": each.point.spent("seconds"),
            "cpu_seconds": each.point.spent("cpu_seconds"),
            "steering": {name: each.steering[name] for name in (self.steered, self.ndcg)},
            "figures": {name: each.test.values[name] for name in names},
            "change": {name: list(drawn[name][1:]) for name in names if name in drawn},
            "kl_to_retrained": each.kl,
        }

    def _distance(self, scores: Tensor) -> float:
        """Mean over test prompts of KL(retrained without our mask ‖ these scores), in nats."""
        truth, other = self.truth, self._log(scores)
        assert truth is not None
        kl = torch.where(truth.isfinite(), truth.exp() * (truth - other), 0.0).sum(1)
        return float(kl.mean())

    def _log(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(self.test.side.seen, -torch.inf).log_softmax(1)

    @property
    def _kept(self) -> Path | None:
        return None if self.out is None else self.out / "retrainings"

    def _rival_file(self, rival: Rival) -> Path | None:
        if self.out is None:
            return None
        parts = self.config.model_dump(mode="json"), self.run.theta, self.retrained
        slug = re.sub(r"\W+", "-", rival.name).strip("-")
        return self.out / "rivals" / f"{slug}-{digest(*parts)[:12]}.json"


def choose(head: Mapping[str, Any], rivals: Mapping[str, dict[str, Any]], ndcg: str) -> None:
    """Say in each rival's record which of its points stands in the table, and how it compares.

    Args:
        head: From `Comparison.head`.
        rivals: Records by name; `chosen`, `comparable` and `intervals` are added.
        ndcg: NDCG's name in the figures.
    """
    reference = KEPT * head["trained_steering"][ndcg]
    if CLOSED_FORM.name in rivals:
        reference = rivals[CLOSED_FORM.name]["points"][CONFIGURED]["steering"][ndcg]
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
    wanted = {known[name.casefold()] for name in names} | {MOST_POPULAR.name}
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
    truth = RETRAINED.name in names
    whole = Comparison(run, config or run.config.debias, out, processes, truth)
    Objective.parse(whole.config.objective).check(whole.valid.side)
    records = {name: whole.record_of(RIVALS[name]) for name in names}
    head = whole.head()
    choose(head, records, whole.ndcg)
    return {**head, "rivals": records}
