"""A sweep: one solve of the metric gradients, then a mask and an update for each point.

    s_i = (1/n) g_iᵀ H⁻¹ ∇F          once for all points
    Δ(m) = Σ m_i s_i                  predicted, for each point's mask

Whatever is finished of a point is a file of its own, named by a digest of all that it hangs on: a
sweep that was interrupted goes on, and one that asks for more (measured figures, retrainings) adds
to what there is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr.common.errors import DataError, UsageError
from fudlr.common.files import write_json
from fudlr.common.progress import track
from fudlr.config import DebiasConfig, to_plain
from fudlr.diagnostics import BEFORE, MASK, PARTS, Facts, Finding, look, warnings
from fudlr.gradients.metric import VALIDATION_LOSS
from fudlr.gradients.recording import STORE
from fudlr.influence.mask import Mask
from fudlr.metrics import evaluate
from fudlr.pipeline.plan import Plan, prepare
from fudlr.pipeline.request import Solved, choose_mask, solve
from fudlr.run import Run, versions
from fudlr.sweep.grid import Grid, Point
from fudlr.sweep.sweet_spot import RULE, basis, rank
from fudlr.verify.retraining import removal, retrain


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
    def digest(self) -> bytes:
        """Of everything but the points that a record hangs on."""
        run = self.plan.run
        config = self.plan.config.model_copy(update=_SWEPT)
        found = hashlib.sha256(config.model_dump_json().encode())
        found.update(run.config.model_dump_json(exclude={"debias"}).encode())
        for tensor in (run.theta, run.start, torch.from_numpy(run.split.train.ids)):
            found.update(tensor.contiguous().numpy().tobytes())
        named = self.plan.config.store
        store = Path(named) if named else None if run.folder is None else run.folder / STORE
        if store is not None:
            for manifest in sorted(store.glob("*.json")):
                found.update(manifest.read_bytes())
        return found.digest()

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
            "mask": _name(chosen.remove.numpy().tobytes()),
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
        return self.figures(self.solved.evidence.remove(self.mask(point)[0].remove).theta)

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
        if self.folder is None:
            return None
        text = json.dumps(asdict(point)).encode()
        return self.folder / "points" / f"{_name(self.digest + text)}.json"

    def read(self, point: Point) -> dict[str, Any]:
        """The point's record: the kept one, or a new one."""
        path = self.path(point)
        if path is None or not path.is_file():
            record = self.predict(point)
            self.keep(point, record)
            return record
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(
                f"the point kept in {path} was to be read",
                f"the file is damaged ({error})",
                "Delete it: it will be made again",
            ) from error
        return found

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
        raise UsageError(
            "a sweep was asked for",
            f"{retrained} retrainings",
            "Give 0 or more retrainings",
        )
    # The loss's gradient is needed to predict it, whatever its weight is.
    config = config.model_copy(update={"also": (*config.also, VALIDATION_LOSS)})
    work = _Sweep(prepare(run, config, command="sweep"), out)
    points = (grid or Grid.around(config)).points
    records = [work.read(point) for point in track(points, description="masks")]
    if measure:
        _complete(work, points, records, "measured", work.measure)
    _retrain(work, points, records, retrained, processes)
    order = rank(records, config.max_loss_rise)
    run.engine.load(run.theta)
    return {
        "objective": str(work.plan.objective),
        "surrogates": [term.metric.soft_key for term in work.plan.objective.terms],
        "samples": len(run.split.train),
        "rule": RULE.format(limit=config.max_loss_rise, basis=basis(records)),
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


def _complete(
    work: _Sweep,
    points: list[Point],
    records: list[dict[str, Any]],
    kind: str,
    figures: Callable[[Point], dict[str, Any]],
) -> None:
    """Add the figures `kind` to the records that lack them; equal masks are done once."""
    known = {record["mask"]: record[kind] for record in records if record[kind]}
    missing = [place for place, record in enumerate(records) if not record[kind]]
    for place in track(missing, description=f"{kind} points"):
        record = records[place]
        if record["mask"] not in known:
            known[record["mask"]] = figures(points[place])
        record[kind] = known[record["mask"]]
        work.keep(points[place], record)


def _retrain(
    work: _Sweep, points: list[Point], records: list[dict[str, Any]], count: int, processes: int
) -> None:
    """Retrain without the samples of the best masks, as many different ones as asked for."""
    best: dict[str, int] = {}
    for place in rank(records, work.plan.config.max_loss_rise):
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


_SWEPT = {"lambda_fair": 1.0, "lambda_acc": 1.0, "lambda_spa": 0.0, "budget": 1.0}
"""In place of what the points set, so that it does not enter their digest twice."""


def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]
