"""The steps in their order.

metrics before → gradients of the training samples, or their store → gradients of the metrics →
scores → mask → update → metrics after → trade-off curve → held-out users → summary
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fudlr.config import DebiasConfig
from fudlr.debias.evidence import Evidence, gather, solvers
from fudlr.debias.heldout import heldout
from fudlr.debias.job import Job, collected_warnings, prepare, with_options
from fudlr.debias.polish import polish
from fudlr.debias.summary import cost, judge, summarise
from fudlr.evaluation import Measured, Prompts, measure
from fudlr.progress import StageClock, track
from fudlr.request import Answer, Scored, answer, score_samples
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
        evidence, found = request(job)
        run.engine.load(found.update.theta)
        with clock.stage("evaluate after"):
            after = measure(run.recommender, job.valid, job.test, config.batch)
        curve = _curve(job, evidence, found.scored)
        summary = summarise(job, evidence, found, before, after)
        if config.heldout:
            summary["heldout"] = heldout(job, evidence, before)
        run.engine.load(found.update.theta)
    summary["warnings"] = [
        *said,
        *evidence.warnings,
        *found.warnings,
        *judge(config, before, after),
    ]
    summary["seconds"] = clock.seconds
    summary["cost"] = cost(clock.seconds, run.train_seconds)
    return Result(run, config, found, before, after, job.valid, job.test, summary, curve)


def request(job: Job) -> tuple[Evidence, Answer]:
    """What cannot be left out: rows, metric gradients, scores, mask and update, each timed.

    The run's model holds θ* before and after.
    """
    config, clock = job.config, job.clock
    with clock.stage("sample gradients"):
        gathered = gather(job)
    with clock.stage("metric gradients"):
        gradients = job.gradients(job.valid)
    with clock.stage("scores"):
        evidence = solvers(job, gathered)
        scored = score_samples(evidence.space, gradients, job.objective, evidence.solve, config)
    with clock.stage("update"):
        found = answer(scored, config.budget, evidence.remove)
    if config.polish:
        with clock.stage("polish"):
            found, evidence.about["polish"] = polish(job, evidence, found, gradients)
    return evidence, found


def _curve(job: Job, evidence: Evidence, scored: Scored) -> list[dict[str, Any]]:
    """Figures of the updated adapter at each budget; `measured` is for real retraining."""
    points: list[dict[str, Any]] = []
    with job.clock.stage("trade-off curve"):
        for budget in track(job.config.curve, description="trade-off curve"):
            found = answer(scored, budget, evidence.remove)
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
