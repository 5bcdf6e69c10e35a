"""Requests answered from rows that a benchmark made itself, on the demo's model and data."""

from __future__ import annotations

from pathlib import Path

import torch
from fudlr import RunConfig
from fudlr.config import merge
from fudlr.gradients.store import Projection, Space, StoredRows, sketch_space
from fudlr.influence.curvature import EmpiricalFisher
from fudlr.influence.solvers import make_solver, sampled_preconditioner
from fudlr.influence.update import removal_update
from fudlr.pipeline.evidence import PRECONDITIONER_ROWS, SKETCH_STEPS, SKETCH_TOLERANCE
from fudlr.pipeline.job import Job
from fudlr.pipeline.request import Answer, answer, score_samples
from fudlr.run import Run, load_run, train_run
from record_once import METRIC, figures, job_of

REQUEST_NAMES = tuple(METRIC)


def demo_run(seed: int, out: Path) -> Run:
    """The demo's run of this seed, trained where `out` has none yet."""
    folder = out / f"run-{seed}"
    if not folder.is_dir():
        train_run(merge(RunConfig(), {"seed": seed}), folder)
    return load_run(folder)


def space_of(rows: StoredRows, projection: Projection) -> Space:
    """Sketch space of rows that fit into memory."""
    return sketch_space(rows.load(), projection)


def answered(job: Job, space: Space, gradients: dict, damping: float) -> Answer:
    """What `debias` answers from a store with these rows."""
    rows = space.rows
    every = max(1, rows.n // PRECONDITIONER_ROWS)
    solve = make_solver(
        EmpiricalFisher(rows),
        damping,
        "cg",
        max_steps=SKETCH_STEPS,
        tolerance=SKETCH_TOLERANCE,
        preconditioner=sampled_preconditioner(rows.take(torch.arange(0, rows.n, every)), damping),
    )
    scored = score_samples(space, gradients, job.objective, solve, job.config)
    theta, n = job.run.theta, space.total
    return answer(
        scored,
        job.config.budget,
        lambda mask: removal_update(theta, rows, mask, solve, n=n, lift=space.lift),
    )


def jobs_of(run: Run, options: dict[str, dict]) -> dict[str, tuple[Job, dict, dict[str, float]]]:
    """Of each request: its job, its metric gradients, and the figures before it."""
    out = {}
    for name, each in options.items():
        job = job_of(run, each, "memory")
        run.engine.load(run.theta)
        gradients = job.gradients(job.valid)
        out[name] = (job, gradients, figures(run, job, run.theta))
    run.engine.load(run.theta)
    return out


def changes(run: Run, job: Job, found: Answer, before: dict[str, float], name: str) -> dict:
    """Predicted and measured change of a request's metric, relative to its value before."""
    metric = METRIC[name]
    after = figures(run, job, found.update.theta)
    soft = next(each.soft_key for each in job.metrics if each.name == metric)
    run.engine.load(run.theta)
    return {
        "predicted": found.scored.predicted(found.mask)[metric] / before[soft],
        "measured": after[metric] / before[metric] - 1,
        "val_loss": after["val_loss"] / before["val_loss"] - 1,
        "removed": int(found.mask.sum()),
    }
