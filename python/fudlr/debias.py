"""The main job: the steps in their order, and the files that they leave.

metrics before → gradients of the training samples → gradients of the metrics → scores → mask →
update → metrics after → trade-off curve → held-out users → adapter, mask, summary, report
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fudlr.batches import Batches
from fudlr.config import DebiasConfig, RunConfig, merge, to_plain
from fudlr.curvature import Parts
from fudlr.data import DataWarning, holdout_users
from fudlr.evaluation import Measured, Prompts, make_prompts, measure
from fudlr.influence import MetricGradient, metric_gradients
from fudlr.mask import sample_candidates
from fudlr.metrics import (
    METRICS,
    Metric,
    Objective,
    bootstrap,
    evaluate,
    find_metric,
    permutation_null,
)
from fudlr.metrics.pairwise import DIRECTIONS, pairwise
from fudlr.progress import StageClock, track
from fudlr.removal import Removal, Trained, check_options
from fudlr.request import Answer, Scored, answer, choose_damping, score_samples
from fudlr.run import Run, versions
from fudlr.store import GradientRows, StreamedRows, record_rows

NEEDED = ("sample gradients", "metric gradients", "scores", "update")
"""Stages without which there is no updated adapter; what the method costs."""


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


@dataclass(frozen=True)
class _Job:
    """What the steps share."""

    run: Run
    config: DebiasConfig
    objective: Objective
    metrics: list[Metric]
    valid: Prompts
    test: Prompts
    clock: StageClock


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
    config = _with_options(config or run.config.debias, options)
    clock = StageClock()
    with _collected_warnings() as said:
        job = _prepare(run, config, clock)
        run.engine.load(run.theta)
        with clock.stage("evaluate before"):
            before = measure(run.recommender, job.valid, job.test, config.batch)
        with clock.stage("sample gradients"):
            rows = _sample_rows(job)
        with clock.stage("metric gradients"):
            gradients = _metric_gradients(job, job.valid)
        with clock.stage("scores"):
            damping = config.damping or choose_damping(
                run.config.train.l2, rows, run.theta, run.start
            )
            removal = _removal(job, rows, damping)
            candidates = None
            if config.candidate_share < 1:
                candidates = sample_candidates(rows.n, config.candidate_share, config.seed)
            scored = score_samples(
                rows, gradients, job.objective, removal.solve, config, candidates=candidates
            )
        with clock.stage("update"):
            found = _answer(job, rows, scored, removal, config.budget)
        run.engine.load(found.update.theta)
        with clock.stage("evaluate after"):
            after = measure(run.recommender, job.valid, job.test, config.batch)
        curve = _curve(job, rows, scored, removal)
        summary = _summary(job, found, before, after, damping)
        if config.heldout:
            summary["heldout"] = _heldout(job, rows, removal, before)
        run.engine.load(found.update.theta)
    summary["warnings"] = [*said, *found.warnings, *_judge(config, before, after)]
    summary["seconds"] = clock.seconds
    summary["cost"] = cost(clock.seconds, run.train_seconds)
    return Result(run, config, found, before, after, job.valid, job.test, summary, curve)


def cost(seconds: dict[str, float], training: float) -> dict[str, Any]:
    """Seconds of the needed stages, and their share of the training's."""
    needed = sum(seconds[stage] for stage in NEEDED)
    return {
        "seconds": needed,
        "stages": list(NEEDED),
        "training_seconds": training or None,
        "share_of_training": needed / training if training else None,
    }


def _with_options(config: DebiasConfig, options: dict[str, Any]) -> DebiasConfig:
    whole = RunConfig(debias=config)
    return merge(whole, {f"debias.{name}": value for name, value in options.items()}).debias


def _prepare(run: Run, config: DebiasConfig, clock: StageClock) -> _Job:
    """Refuse before long work what cannot be done."""
    objective = Objective.parse(config.objective)
    check_options(config)
    also = [find_metric(name) for name in config.also if name not in objective.names]
    with clock.stage("prepare"):
        valid = make_prompts(run.split, run.split.valid, run.config.data)
        test = make_prompts(run.split, run.split.test, run.config.data)
    objective.check(valid.side)
    metrics = [term.metric for term in objective.terms] + also
    return _Job(run, config, objective, metrics, valid, test, clock)


def _sample_rows(job: _Job) -> GradientRows:
    face = (job.run.engine, job.run.recommender.forward, job.run.recommender.loss)
    if job.config.rows == "stream":
        return StreamedRows(*face, _batches(job))
    return record_rows(*face, _batches(job, "gradients of the samples"))


def _batches(job: _Job, description: str = "", index: Tensor | None = None) -> Batches:
    """The training samples, or those at `index`; with progress where there is a description."""
    samples, size = job.run.split.train, job.config.batch
    if index is not None:
        samples = samples.take(index.numpy())
    sizes = [min(size, len(samples) - start) for start in range(0, len(samples), size)]

    def source() -> Iterable[Any]:
        batches = job.run.recommender.batches(samples, size)
        return track(batches, len(sizes), description) if description else batches

    return Batches(source, sizes)


def _metric_gradients(job: _Job, prompts: Prompts) -> dict[str, MetricGradient]:
    return metric_gradients(
        job.run.recommender,
        job.run.engine,
        prompts.samples,
        prompts.side,
        job.metrics,
        batch_size=job.config.batch,
    )


def _removal(job: _Job, rows: GradientRows, damping: float) -> Removal:
    run = job.run
    parts = Parts(
        engine=run.engine,
        forward=run.recommender.forward,
        loss=run.recommender.loss,
        batches=_batches(job),
        rows=rows,
        draw=getattr(run.recommender, "draw_labels", None),
        seed=job.config.seed,
    )
    trained = Trained(run.theta, run.start, run.config.train.l2, damping)
    return Removal(job.config, parts, rows, lambda index: _batches(job, index=index), trained)


def _answer(
    job: _Job, rows: GradientRows, scored: Scored, removal: Removal, budget: float
) -> Answer:
    return answer(rows, scored, job.run.theta, removal.solve, budget, remove=removal.update)


def _curve(job: _Job, rows: GradientRows, scored: Scored, removal: Removal) -> list[dict[str, Any]]:
    """Figures of the updated adapter at each budget; `measured` is for real retraining."""
    points: list[dict[str, Any]] = []
    with job.clock.stage("trade-off curve"):
        for budget in track(job.config.curve, description="trade-off curve"):
            found = _answer(job, rows, scored, removal, budget)
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


def _heldout(job: _Job, rows: GradientRows, removal: Removal, before: Measured) -> dict[str, Any]:
    """Twofold cross-fitting: each user is judged by an update that its own gradient had no part in.

    The curvature is of the training samples and serves both halves; scores, mask and update are
    made anew for each. The halves' scores are joined before anything is measured, so that group
    metrics are over as many users as everywhere else.
    """
    run = job.run
    scores, losses = torch.empty_like(before.scores), torch.empty_like(before.losses)
    valid_losses = torch.empty(len(job.valid.samples))
    halves = holdout_users(job.valid.samples, 0.5, job.config.seed)
    with job.clock.stage("held-out users"):
        for own, other in (halves, halves[::-1]):
            run.engine.load(run.theta)
            gradients = _metric_gradients(job, job.valid.take(own))
            scored = score_samples(rows, gradients, job.objective, removal.solve, job.config)
            found = _answer(job, rows, scored, removal, job.config.budget)
            run.engine.load(found.update.theta)
            part = torch.from_numpy(other)
            test, valid = job.test.take(other).samples, job.valid.take(other).samples
            scores[part], losses[part] = run.recommender.evaluate(test, job.config.batch)
            valid_losses[part] = run.recommender.evaluate(valid, job.config.batch)[1]
        figures = evaluate(scores, job.test.side) | pairwise(scores, job.test.side)
        figures |= {"val_loss": float(valid_losses.mean()), "test_loss": float(losses.mean())}
        drawn = bootstrap(
            {"before": before.scores, "after": scores}, job.test.side, seed=job.config.seed
        )
    return {
        "before": before.metrics,
        "after": figures,
        "intervals": intervals(drawn, {"after": "change"}),
    }


def _summary(
    job: _Job, found: Answer, before: Measured, after: Measured, damping: float
) -> dict[str, Any]:
    """The figures of `summary.json` that need no further step."""
    side, seed = job.test.side, job.config.seed
    with job.clock.stage("intervals"):
        drawn = bootstrap({"before": before.scores, "after": after.scores}, side, seed=seed)
        null = permutation_null(before.scores, side, seed=seed)
    soft = {metric.name: metric.soft_key for metric in job.metrics}
    predicted = {
        soft.get(name, name): before.metrics[soft.get(name, name)] + change
        for name, change in found.scored.predicted(found.mask).items()
    }
    config = job.run.config.model_copy(update={"debias": job.config})
    return {
        "objective": str(job.objective),
        "before": before.metrics,
        "after": after.metrics,
        "predicted": predicted,
        "intervals": intervals(drawn, {"after": "change"}),
        "null": {
            name: {"mean": n.mean, "interval": [n.low, n.high], "p": n.p_value}
            for name, n in null.items()
        },
        "directions": directions(before.metrics, side.k),
        "samples": {"training": len(found.mask), "removed": int(found.mask.sum())},
        "solver": {
            "damping": damping,
            "steps": found.update.solution.steps,
            "residual": float(found.update.solution.residuals.max()),
            "relative_shift": found.update.relative_shift,
        },
        "update": {"rule": job.config.update, **found.update.details},
        "config": to_plain(config),
        "versions": versions(),
        "seed": job.run.config.seed,
    }


def intervals(
    drawn: dict[str, dict[str, Any]], changes: dict[str, str]
) -> dict[str, dict[str, list[float]]]:
    """Bootstrap intervals in the summary's form; `changes` renames the paired differences."""
    named: dict[str, dict[str, list[float]]] = {}
    for name, values in drawn.items():
        later, _, first = name.partition(" - ")
        key = changes.get(later) if first else name
        if key:
            named[key] = {metric: [v.low, v.high] for metric, v in values.items()}
    return named


def directions(figures: dict[str, float], k: int) -> dict[str, str]:
    """`lower` or `higher`, which is better, for every figure."""
    better = {"val_loss": "lower", "test_loss": "lower", **DIRECTIONS}
    for metric in METRICS.values():
        word = "lower" if metric.lower_is_better else "higher"
        better[metric.soft_key] = better[metric.hard_key(k)] = word
    return {name: better[name] for name in figures if name in better}


def _judge(config: DebiasConfig, before: Measured, after: Measured) -> list[str]:
    """What a person should know of the update's effect before using it."""
    rise = after.metrics["val_loss"] / before.metrics["val_loss"] - 1
    if rise <= config.max_loss_rise:
        return []
    return [
        f"The update raises the validation loss by {rise:.1%}, more than the "
        f"{config.max_loss_rise:.1%} that was allowed: it costs accuracy. Remove fewer samples, "
        "raise lambda_acc, or raise the damping."
    ]


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Warnings about the data, for the report; others pass."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    for warning in caught:
        if issubclass(warning.category, DataWarning):
            said.append(str(warning.message))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
