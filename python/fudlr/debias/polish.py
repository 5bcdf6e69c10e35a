"""Exactness on demand: the chosen mask's update in the adapter's own space.

    (Gᵀ diag(T) G / n + damping) x = (1/n) Gᵀ m

by a few steps of conjugate gradients from the sketches' solution, with whole gradients: those of
the removed samples on the right, and the curvature's products computed anew for each step. The
preconditioner is made from some samples' whole gradients, so that all LoRA matrices take part.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fudlr.gradients.metric import MetricGradient
from fudlr.gradients.store import StreamedRows, record_rows
from fudlr.influence.candidates import sample_candidates
from fudlr.influence.curvature import EmpiricalFisher
from fudlr.influence.solvers import sampled_preconditioner, solve_cg
from fudlr.influence.update import finish
from fudlr.pipeline.evidence import PRECONDITIONER_ROWS, Evidence, terms_of
from fudlr.pipeline.job import Job
from fudlr.pipeline.request import Answer

PRECONDITIONER_BYTES = 2**30
"""Memory for the preconditioner's rows; fewer of them serve where d is large."""


def polish(
    job: Job, evidence: Evidence, found: Answer, gradients: dict[str, MetricGradient]
) -> tuple[Answer, dict[str, Any]]:
    """The answer with a polished update, and how far the one before was off.

    Args:
        job: Its run's model holds θ*.
        evidence: What `found` was made from.
        found: Mask and update to start from; the mask stays.
        gradients: Of the metrics, for what they predict of either update.

    Returns:
        The answer; and relative difference and cosine of the two shifts, the relative residual of
        the whole system before and after, and each surrogate's predicted change before and after.
    """
    run, config = job.run, job.config
    sketched = found.update.delta
    if not int(found.mask.sum()):
        return found, {"steps": 0}
    rhs = _removed_sum(job, found.mask)[None] / found.mask.numel()
    products = _FirstProduct(_curvature(job, config.polish_share))
    solution = solve_cg(
        products,
        rhs,
        evidence.damping,
        max_steps=config.polish_steps,
        preconditioner=sampled_preconditioner(_some_rows(job), evidence.damping),
        start=sketched[None],
    )
    update = finish(run.theta, solution.x[0], solution)
    first = rhs[0] - products.first - evidence.damping * sketched
    about = {
        "steps": solution.steps,
        "share": config.polish_share,
        "relative_difference": float((update.delta - sketched).norm() / update.delta.norm()),
        "cosine": float(torch.cosine_similarity(update.delta, sketched, dim=0)),
        "residual_before": float(first.norm() / rhs.norm()),
        "residual_after": float(solution.residuals.max()),
        "predicted_before": _predicted(gradients, sketched),
        "predicted_after": _predicted(gradients, update.delta),
    }
    return replace(found, update=update), about


class _FirstProduct:
    """A curvature's product that remembers the first one: that with the start."""

    def __init__(self, curvature: EmpiricalFisher) -> None:
        self._curvature = curvature
        self.first = torch.zeros(())

    def __call__(self, vectors: Tensor) -> Tensor:
        found = self._curvature.product(vectors)
        if not self.first.dim():
            self.first = found[0]
        return found


def _removed_sum(job: Job, mask: Tensor) -> Tensor:
    """Gᵀ m `[d]` from the removed samples alone, exactly."""
    removed = job.run.split.train.take(mask.nonzero().flatten().numpy())
    rows = StreamedRows(*job.face, job.batches("gradients of the removed samples", removed))
    return rows.sum(torch.ones(1, rows.n).to(job.run.theta))[0]


def _curvature(job: Job, share: float) -> EmpiricalFisher:
    samples = job.run.split.train
    if share < 1:
        samples = samples.take(sample_candidates(len(samples), share, job.config.seed).numpy())
    rows = StreamedRows(*job.face, job.batches("curvature", samples))
    return EmpiricalFisher(rows, terms_of(job, samples))


def _some_rows(job: Job) -> Tensor:
    """Whole gradients of samples spread over all, times √T, `[m, d]`."""
    samples = job.run.split.train
    fit = PRECONDITIONER_BYTES // (4 * job.run.engine.d)
    count = max(1, min(PRECONDITIONER_ROWS, fit, len(samples)))
    index = torch.linspace(0, len(samples) - 1, count).long().unique()
    some = samples.take(index.numpy())
    matrix = record_rows(*job.face, job.batches("preconditioner", some)).matrix
    terms = terms_of(job, some)
    return matrix if terms is None else matrix * terms.sqrt()[:, None]


def _predicted(gradients: dict[str, MetricGradient], delta: Tensor) -> dict[str, float]:
    """First-order change of every surrogate along `delta`, ∇Fᵀ δ."""
    return {name: float(each.gradient @ delta) for name, each in gradients.items()}
