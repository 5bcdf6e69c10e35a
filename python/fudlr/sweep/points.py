"""A sweep: one solve of the metric gradients, then a mask and an update for each point.

    s_i = (1/n) g_iᵀ H⁻¹ ∇F          once for all points
    Δ(m) = Σ m_i s_i                  predicted, for each point's mask

Whatever is finished of a point is a file of its own, named by a digest of all it depends on: a
sweep that was interrupted goes on, and one that asks for more (measured figures, retrainings) adds
to what there is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr.common.device import versions
from fudlr.common.digest import digest
from fudlr.common.errors import UsageError
from fudlr.common.files import write_json
from fudlr.common.kept import kept_json, key_of
from fudlr.common.progress import track
from fudlr.config import DebiasConfig, to_plain
from fudlr.diagnostics import BEFORE, MASK, MAX_LOSS_RISE, PARTS, Facts, Finding, look, warnings
from fudlr.gradients.metric import VALIDATION_LOSS
from fudlr.gradients.recording import STORE
from fudlr.influence.mask import Mask
from fudlr.metrics import evaluate
from fudlr.pipeline.plan import Plan, prepare
from fudlr.pipeline.request import Solved, choose_mask, solve
from fudlr.run import Run
from fudlr.sweep.grid import RULE, Grid, Point, basis, rank
from fudlr.verify.retraining import removal, retrain

SWEPT = {"lambda_fair", "lambda_acc", "lambda_spa", "budget"}
"""Options that the points set."""


@dataclass
class _Sweep:
    """One sweep's work; `solved` is made when the first unfinished point needs it."""

    plan: Plan
    folder: Path | None
    found: list[Finding] = field(default_factory=list)

    @cached_property
    def solved(self) -> Solved:
        """Rows, metric gradients and the influences of the rows' samples."""
        plan = self.plan

        def check(gradients: Any, space: Any) -> None:
            # A sweep looks around: what would leave a single request's mask empty is said here.
            self.found = look(BEFORE, Facts(plan, gradients, space))

        return solve(plan, lambda: plan.gradients(plan.valid, PARTS), check)

    @cached_property
    def before(self) -> dict[str, dict[str, float]]:
        """Figures of θ* on validation and test prompts."""
        return self._figures(self.plan.run.theta)

    @cached_property
    def digest(self) -> str:
        """Of everything but the points that a record depends on."""
        run, named = self.plan.run, self.plan.config.store
        options = run.config.model_copy(update={"debias": self.plan.config}).model_dump(mode="json")
        options["debias"] = {n: v for n, v in options["debias"].items() if n not in SWEPT}
        store = Path(named) if named else run.folder and run.folder / STORE
        manifests = sorted(store.glob("*.json")) if store else []
        return digest(
            options, run.theta, run.start, torch.from_numpy(run.split.train.ids), *manifests
        )

    def mask(self, point: Point) -> tuple[Mask, dict[str, float]]:
        """The point's mask [n], and every surrogate's predicted change."""
        config = point.options(self.plan.config)
        scored = self.solved.scored(config)
        chosen = choose_mask(scored.score, config)
        return chosen, scored.predicted(chosen.remove)

    def predict(self, point: Point) -> dict[str, Any]:
        """A new record: the mask's size and first-order changes."""
        solved = self.solved
        chosen, changes = self.mask(point)
        start = {name: each.value for name, each in solved.gradients.items()}
        after = {name: start[name] + change for name, change in changes.items()}
        settled = look(MASK, Facts(self.plan, mask=chosen))
        return {
            **asdict(point),
            "removed": chosen.removed,
            "mask": key_of(chosen.remove),
            "rows": solved.evidence.source,
            "update": self.plan.update,
            "predicted": {**self._judge(start, after), "change": changes},
            "measured": None,
            "retrained": None,
            "diagnostics": {
                each.name: {"severity": str(each.severity), "measured": each.measured}
                for each in (*self.found, *settled)
            },
            "warnings": [
                *solved.evidence.warnings,
                *solved.influence.warnings,
                *warnings([*self.found, *settled], forced=False),
            ],
        }

    def measure(self, point: Point) -> dict[str, Any]:
        """Figures of the updated adapter."""
        (update,) = self.solved.evidence.remove(self.mask(point)[0].remove[None])
        return self.figures(update.theta)

    def figures(self, theta: Tensor) -> dict[str, Any]:
        """What `theta` changes: figures of both kinds of prompts, objective and loss."""
        found = self._figures(theta)
        soft = {metric.name: metric.soft_key for metric in self.plan.metrics}
        first, then = (
            {name: each["validation"][key] for name, key in soft.items()}
            | {VALIDATION_LOSS: each["validation"][VALIDATION_LOSS]}
            for each in (self.before, found)
        )
        return {**self._judge(first, then), **found}

    def _judge(self, first: dict[str, float], then: dict[str, float]) -> dict[str, float]:
        """Relative change of the objective, lower is better, and of the validation loss."""
        names = self.plan.objective.names
        moved = torch.tensor([then[name] - first[name] for name in names], dtype=torch.float64)
        at = torch.tensor([first[name] for name in names], dtype=torch.float64)
        return {
            "objective": float(self.plan.objective.coefficients(at) @ moved),
            "loss_rise": then[VALIDATION_LOSS] / first[VALIDATION_LOSS] - 1,
        }

    def _figures(self, theta: Tensor) -> dict[str, dict[str, float]]:
        plan = self.plan
        plan.run.engine.load(theta)
        found = {}
        for name, loss, prompts in (
            ("validation", VALIDATION_LOSS, plan.valid),
            ("test", "test_loss", plan.test),
        ):
            scores, losses = plan.run.recommender.evaluate(prompts.samples, plan.config.batch)
            found[name] = {**evaluate(scores, prompts.side), loss: float(losses.mean())}
        plan.run.engine.load(plan.run.theta)
        return found

    def path(self, point: Point) -> Path | None:
        """Where the point's record is kept."""
        name = key_of(self.digest, asdict(point)) if self.folder else ""
        return self.folder / "points" / f"{name}.json" if self.folder else None

    def read(self, point: Point) -> dict[str, Any]:
        """The point's record: the kept one, or a new one."""
        return kept_json(self.path(point), lambda: self.predict(point))

    def keep(self, point: Point, record: dict[str, Any]) -> None:
        """Write the point's record, whole or not at all."""
        path = self.path(point)
        if path is not None:
            write_json(path, record)


def sweep_run(
    run: Run,
    grid: Grid | None = None,
    config: DebiasConfig | None = None,
    out: Path | None = None,
    *,
    measure: bool = False,
    retrained: int = 0,
    processes: int = 1,
) -> dict[str, Any]:
    """Sweep λ's and budgets over one solve; the record of all points, as plain data.

    Args:
        run: From `load_run`; its model holds the trained adapter afterwards.
        grid: Which points; those around the configured values where None.
        config: Objective, rows, curvature and the rest; the run's own where None.
        out: Where finished points and retrainings are kept, so that a second call goes on.
        measure: Update the adapter by every point's mask, and measure it.
        retrained: How many of the best points to retrain without their samples.
        processes: Workers for retraining.

    Raises:
        UsageError: A negative number of retrainings, or as `debias`.
        DataError: A kept file is damaged.
    """
    config = config or run.config.debias
    if retrained < 0:
        raise UsageError("a sweep was asked for", f"{retrained} retrainings", "Give 0 or more")
    # The loss's gradient is needed to predict it, whatever its weight is.
    config = config.model_copy(update={"also": (*config.also, VALIDATION_LOSS)})
    work = _Sweep(prepare(run, config, command="sweep"), out)
    points = (grid or Grid.around(config)).points
    records = [work.read(point) for point in track(points, description="masks")]
    if measure:
        _measure(work, points, records)
    _retrain(work, points, records, retrained, processes)
    order = rank(records, MAX_LOSS_RISE)
    run.engine.load(run.theta)
    return {
        "objective": str(work.plan.objective),
        "surrogates": [term.metric.soft_key for term in work.plan.objective.terms],
        "samples": len(run.split.train),
        "rule": RULE.format(limit=MAX_LOSS_RISE, basis=basis(records)),
        "basis": basis(records),
        "sweet_spot": order[0],
        "before": work.before if measure or retrained else None,
        "points": records,
        "warnings": list(dict.fromkeys(said for each in records for said in each["warnings"])),
        "seconds": work.plan.clock.seconds,
        "cpu_seconds": work.plan.clock.cpu_seconds,
        "config": to_plain(run.config.model_copy(update={"debias": config})),
        "versions": versions(),
    }


def _measure(work: _Sweep, points: list[Point], records: list[dict[str, Any]]) -> None:
    """Add measured figures to the records that lack them; equal masks are done once."""
    known = {record["mask"]: record["measured"] for record in records if record["measured"]}
    missing = [place for place, record in enumerate(records) if not record["measured"]]
    for place in track(missing, description="measured points"):
        record = records[place]
        if record["mask"] not in known:
            known[record["mask"]] = work.measure(points[place])
        record["measured"] = known[record["mask"]]
        work.keep(points[place], record)


def _retrain(
    work: _Sweep, points: list[Point], records: list[dict[str, Any]], count: int, processes: int
) -> None:
    """Retrain without the samples of the best masks, as many different ones as asked for."""
    best: dict[str, int] = {}
    for place in rank(records, MAX_LOSS_RISE):
        best.setdefault(records[place]["mask"], place)
    open_places = [
        place for place in list(best.values())[:count] if not records[place]["retrained"]
    ]
    if not open_places:
        return
    jobs = [removal("retrain", work.mask(points[place])[0].remove) for place in open_places]
    kept = None if work.folder is None else work.folder / "retrainings"
    done = retrain(work.plan.run, jobs, kept, processes)
    for place, found in zip(open_places, done, strict=True):
        records[place]["retrained"] = work.figures(found.theta)
        work.keep(points[place], records[place])
