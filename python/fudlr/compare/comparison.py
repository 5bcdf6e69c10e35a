"""`fudlr compare`: every rival on the same trained adapter, judged on users that did not steer it.

A rival that uses gradients of validation users is run twice, steered by either half of them, and
judged on the other half; the halves are joined before anything is measured. The others have nothing
to hold out. Of a rival's points one stands in the table: the one that is best on the steered metric
*on the validation prompts that steered it*, among those that keep `KEPT` of the trained adapter's
NDCG there. The plot has all points.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.common.files import write_json
from fudlr.compare.base import Point, Rival, Setting
from fudlr.compare.ours import RETRAINED
from fudlr.compare.table import RIVALS
from fudlr.config import DebiasConfig
from fudlr.data import holdout_users
from fudlr.debias import intervals
from fudlr.evaluation import Prompts, make_prompts
from fudlr.metrics import METRICS, Objective, bootstrap, evaluate, permutation_null
from fudlr.run import Run

KEPT = 0.95
"""Share of the trained adapter's NDCG that a table's point must keep on the steering prompts."""
BOOTSTRAPPED = ("arp", "aplt", "hellinger", "dp", "hit_gap", "ndcg", "hr")
"""Metrics with intervals; those of exposure would need the catalogue for each resample."""


@dataclass
class _Judged:
    """A point's scores and figures."""

    point: Point
    test: Tensor
    steering: dict[str, float]
    figures: dict[str, float]


@dataclass
class Comparison:
    """One comparison; `record` is what the files hold."""

    run: Run
    config: DebiasConfig
    out: Path | None = None
    processes: int = 1

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
    def trained(self) -> _Judged:
        """The trained adapter as it is."""
        return self._judge([Point("")], None)[0]

    @cached_property
    def truth(self) -> Tensor:
        """Log-probabilities [n, M] of the adapters retrained without our masks, joined."""
        return self._log(self.judged(RETRAINED)[0].test)

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

    def judged(self, rival: Rival) -> list[_Judged]:
        """The rival's points with their figures."""
        if not rival.uses_users:
            return self._judge(rival.points(self.whole), None)
        halves = [rival.points(setting) for setting, _, _ in self.parts]
        return self._judge(halves[0], halves[1])

    def record_of(self, rival: Rival) -> dict[str, Any]:
        """The rival's points, which of them stands in the table, and that one's intervals."""
        kept = self._rival_file(rival)
        if kept is not None and kept.is_file():
            found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
            return found
        judged = self.judged(rival)
        chosen = self._choose(judged)
        drawn = bootstrap(
            {"before": self.trained.test, "after": judged[chosen].test},
            self.test.side,
            seed=self.config.seed,
            metrics=[METRICS[name] for name in BOOTSTRAPPED],
        )
        record = {
            "about": rival.about,
            "uses_users": rival.uses_users,
            "names_samples": rival.names_samples,
            "chosen": chosen,
            "intervals": intervals(drawn, {"after": "change"}),
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
            "trained": self.trained.figures,
            "trained_kl_to_retrained": self._distance(self.trained.test),
            "null": {
                name: {"mean": n.mean, "interval": [n.low, n.high], "p": n.p_value}
                for name, n in null.items()
            },
        }

    def _judge(self, points: Sequence[Point], other: Sequence[Point] | None) -> list[_Judged]:
        """Figures of points; where `other` has the second half's, each user's are joined."""
        found = []
        for i, point in enumerate(points):
            test, valid = self._scores(point)
            if other is not None:
                (_, first, second), _ = self.parts
                test_other, valid_other = self._scores(other[i])
                test[first], valid[second] = test_other[first], valid_other[second]
                point = replace(  # noqa: PLW2901
                    point,
                    cost={n: (v + other[i].spent(n)) / 2 for n, v in point.cost.items()},
                )
            steering = evaluate(valid, self.valid.side)
            found.append(_Judged(point, test, steering, evaluate(test, self.test.side)))
        return found

    def _scores(self, point: Point) -> tuple[Tensor, Tensor]:
        """Scores [n, M] of the point on test and on validation prompts."""
        self.run.engine.load(self.run.theta if point.theta is None else point.theta)
        both = []
        for prompts in (self.test, self.valid):
            scores, _ = self.run.recommender.evaluate(prompts.samples, self.config.batch)
            both.append(scores if point.ranker is None else point.ranker(scores, prompts))
        self.run.engine.load(self.run.theta)
        return both[0], both[1]

    def _choose(self, judged: Sequence[_Judged]) -> int:
        floor = KEPT * self.trained.steering[self.ndcg]
        sign = 1 if self.lower_is_better else -1
        fit = [i for i, each in enumerate(judged) if each.steering[self.ndcg] >= floor]
        if not fit:
            return max(range(len(judged)), key=lambda i: judged[i].steering[self.ndcg])
        return min(fit, key=lambda i: sign * judged[i].steering[self.steered])

    def _plain(self, each: _Judged) -> dict[str, Any]:
        hard = {metric.hard_key(self.test.side.k) for metric in METRICS.values()}
        figures = each.figures
        if not each.point.soft:
            figures = {name: value for name, value in figures.items() if name in hard}
        return {
            "strength": each.point.strength,
            "seconds": each.point.spent("seconds"),
            "cpu_seconds": each.point.spent("cpu_seconds"),
            "steering": {name: each.steering[name] for name in (self.steered, self.ndcg)},
            "figures": figures,
            "kl_to_retrained": self._distance(each.test) if each.point.soft else None,
        }

    def _distance(self, scores: Tensor) -> float:
        """Mean over test prompts of KL(retrained without our mask ‖ these scores), in nats."""
        truth, other = self.truth, self._log(scores)
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
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        digest.update(self.run.theta.numpy().tobytes())
        slug = re.sub(r"\W+", "-", rival.name).strip("-")
        return self.out / "rivals" / f"{slug}-{digest.hexdigest()[:12]}.json"


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
        rivals: Names in `RIVALS`; all of them by default.
        processes: Workers for retraining.

    Raises:
        UsageError: A rival that is not in the table.
    """
    unknown = [name for name in rivals or () if name not in RIVALS]
    if unknown:
        raise UsageError(
            f"a comparison with {unknown[0]!r} was asked for",
            "there is no rival of that name",
            f"Choose from {', '.join(RIVALS)}",
        )
    run.engine.load(run.theta)
    whole = Comparison(run, config or run.config.debias, out, processes)
    Objective.parse(whole.config.objective).check(whole.valid.side)
    records = {name: whole.record_of(RIVALS[name]) for name in rivals or RIVALS}
    return {**whole.head(), "rivals": records}
