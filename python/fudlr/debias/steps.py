"""The steps in their order.

metrics before → gradients of the training samples, or their store → gradients of the metrics →
signatures of failure → scores → mask → update → metrics after → trade-off curve → held-out users →
summary
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fudlr.common.progress import StageClock, track
from fudlr.config import DebiasConfig
from fudlr.debias.heldout import heldout
from fudlr.debias.polish import polish
from fudlr.debias.steering import steer
from fudlr.debias.summary import cost, summarise
from fudlr.diagnostics import (
    AFTER,
    BEFORE,
    MASK,
    PARTS,
    Facts,
    Finding,
    keeps,
    look,
    plain,
    warnings,
)
from fudlr.evaluation import Measured, Prompts, measure
from fudlr.influence.mask import Mask, threshold_mask
from fudlr.pipeline.evidence import Evidence, gather, solvers
from fudlr.pipeline.job import Job, collected_warnings, prepare, with_options
from fudlr.pipeline.request import Answer, Scored, answer, choose_mask, score_samples
from fudlr.run import Run


@dataclass
class Result:
    """What `debias` found; `outputs.write_result` puts it into a folder.

    Attributes:
        run: What was debiased.
        config: With which options.
        answer: Scores, mask and update.
        before, after: Figures of the trained and of the updated adapter.
        valid, test: The prompts behind gradients and figures.
        summary: The dictionary of `summary.json`.
        curve: The trade-off curve's points.
    """

    run: Run
    config: DebiasConfig
    answer: Answer
    before: Measured
    after: Measured
    valid: Prompts
    test: Prompts
    summary: dict[str, Any]
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def mask(self) -> Tensor:
        """[n], 1 removed."""
        return self.answer.mask

    @property
    def theta(self) -> Tensor:
        """The updated parameters [d]; the run's model holds them too."""
        return self.answer.update.theta


def debias(run: Run, config: DebiasConfig | None = None, **options: Any) -> Result:
    """Find the samples that cause the bias and take their effect out of the run's adapter.

    Args:
        run: From `fudlr.load_run` or `fudlr.train_run`; its model holds the updated adapter
            afterwards.
        config: Options; the run's own where None.
        options: Single options that override it: `objective="hellinger", budget=0.05`.

    Raises:
        UsageError: An unknown metric, curvature, solver or option, or a value out of range.
        FudlrError: As the steps raise.
    """
    config = with_options(config or run.config.debias, options)
    clock = StageClock()
    with collected_warnings() as said:
        job = prepare(run, config, clock)
        run.engine.load(run.theta)
        with clock.stage("evaluate before"):
            before = measure(run.recommender, job.valid, job.test, config.batch)
            start_loss = _start_loss(job)
        facts = Facts(job, before=before, start_loss=start_loss)
        evidence, found, signs = request(job, facts)
        run.engine.load(found.update.theta)
        with clock.stage("evaluate after"):
            after = measure(run.recommender, job.valid, job.test, config.batch)
        summary = summarise(job, evidence, found, before, after)
        facts.after, facts.change = after, summary["intervals"]["change"]
        signs += look(AFTER, facts)
        curve = [] if keeps(signs) and not config.force else _curve(job, evidence, found.scored)
        if config.heldout and not (keeps(signs) and not config.force):
            summary["heldout"] = heldout(job, evidence, before)
        run.engine.load(found.update.theta)
    summary["warnings"] = [
        *said,
        *evidence.warnings,
        *found.warnings,
        *warnings(signs, forced=config.force),
    ]
    summary["signatures"] = plain(signs)
    summary["seconds"] = clock.seconds
    summary["cpu_seconds"] = clock.cpu_seconds
    summary["cost"] = cost(clock.seconds, run.train_seconds)
    return Result(run, config, found, before, after, job.valid, job.test, summary, curve)


def request(job: Job, facts: Facts | None = None) -> tuple[Evidence, Answer, list[Finding]]:
    """What cannot be left out: rows, metric gradients, scores, mask and update, each timed.

    The run's model holds θ* before and after.

    Args:
        job: What is asked.
        facts: Where what signatures are read from is noted.

    Returns:
        The evidence, the answer, and what was found of the signatures up to here.

    Raises:
        RefusedError: A signature refuses the request.
    """
    facts = facts or Facts(job)
    config, clock = job.config, job.clock
    with clock.stage("sample gradients"):
        gathered = gather(job)
    with clock.stage("metric gradients"):
        gradients = job.gradients(job.valid, PARTS)
    facts.gradients, facts.space = gradients, gathered.space
    with clock.stage("signatures"):
        signs = look(BEFORE, facts)
    with clock.stage("scores"):
        evidence = solvers(job, gathered)
        scored = score_samples(evidence.space, gradients, job.objective, evidence.solve, config)
    with clock.stage("update"):
        chosen = choose_mask(scored.score, config)
        if keeps(signs) and not config.force:
            chosen = Mask(torch.zeros_like(chosen.remove))
        facts.mask = chosen
        signs += look(MASK, facts)
        found = answer(scored, chosen, evidence.remove)
    if config.polish:
        with clock.stage("polish"):
            found, evidence.about["polish"] = polish(job, evidence, found, gradients)
    if config.steering and found.mask.any():
        with clock.stage("steering"):
            found, evidence.about["steering"] = steer(job, evidence, job.valid, gradients, found)
    facts.update = found.update
    return evidence, found, signs


def _start_loss(job: Job) -> float:
    """Validation loss at θ₀; the model holds θ* afterwards."""
    run = job.run
    run.engine.load(run.start)
    losses = run.recommender.losses(job.valid.samples, job.config.batch)
    run.engine.load(run.theta)
    return float(losses.mean())


def _curve(job: Job, evidence: Evidence, scored: Scored) -> list[dict[str, Any]]:
    """Figures of the updated adapter at each budget; `measured` is for real retraining."""
    points: list[dict[str, Any]] = []
    if job.config.steering:
        return []  # the curve is of removals
    with job.clock.stage("trade-off curve"):
        for budget in track(job.config.curve, description="trade-off curve"):
            found = answer(scored, threshold_mask(scored.score, budget), evidence.remove)
            job.run.engine.load(found.update.theta)
            figures = measure(job.run.recommender, job.valid, job.test, job.config.batch)
            points.append(
                {
                    "budget": budget,
                    "removed": int(found.mask.sum()),
                    "predicted": figures.metrics,
                    "measured": None,
                }
            )
    return points
