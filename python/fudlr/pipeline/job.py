"""What the steps of one request share, checked before long work."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fudlr.common.batches import Batches
from fudlr.common.errors import UsageError
from fudlr.common.progress import StageClock, track
from fudlr.config import DebiasConfig, RunConfig, merge
from fudlr.data import DataWarning
from fudlr.evaluation import Prompts, make_prompts
from fudlr.gradients.metric import MetricGradients, metric_gradients
from fudlr.gradients.store.rows import Forward, Loss
from fudlr.metrics import Metric, Objective, find_metric
from fudlr.pipeline.removal import check_options
from fudlr.pipeline.replayed import trajectory_folder
from fudlr.run import Run
from fudlr.train.adam import FILE, Adam
from fudlr_ext import Engine


@dataclass(frozen=True)
class Job:
    """A run and what is asked of it.

    Attributes:
        run: What is to be debiased.
        config: With which options.
        objective: What should fall.
        metrics: Those of the objective, then those that are only looked at.
        valid, test: Prompts for gradients and for figures.
        clock: Seconds of each stage.
    """

    run: Run
    config: DebiasConfig
    objective: Objective
    metrics: list[Metric]
    valid: Prompts
    test: Prompts
    clock: StageClock

    @property
    def needs_loss(self) -> bool:
        """Whether the validation loss's gradient is asked for; it costs a pass of its own."""
        return self.config.lambda_acc > 0 or "val_loss" in self.config.also

    @property
    def face(self) -> tuple[Engine, Forward, Loss]:
        """What rows of the model's gradients are computed with."""
        recommender = self.run.recommender
        return self.run.engine, recommender.forward, recommender.loss

    def batches(self, description: str = "", samples: Any = None) -> Batches:
        """The training samples (or those given) in order; with progress where described."""
        samples = self.run.split.train if samples is None else samples
        size = self.config.batch
        sizes = [min(size, len(samples) - start) for start in range(0, len(samples), size)]

        def source() -> Iterable[Any]:
            batches = self.run.recommender.batches(samples, size)
            return track(batches, len(sizes), description) if description else batches

        return Batches(source, sizes)

    def gradients(self, prompts: Prompts, parts: int = 0) -> MetricGradients:
        """Gradients of all metrics, and of the loss where needed, on `prompts`.

        With `parts`, what each of so many random parts of the prompts adds is kept.
        """
        if parts:
            generator = torch.Generator().manual_seed(self.config.seed)
            order = torch.randperm(len(prompts.samples), generator=generator)
            prompts = prompts.take(order.numpy())
        found = metric_gradients(
            self.run.recommender,
            self.run.engine,
            prompts.samples,
            prompts.side,
            self.metrics,
            validation_loss=self.needs_loss,
            batch_size=self.config.batch,
            parts=parts,
        )
        if parts:
            found.scores = found.scores[order.argsort()]
        return found


def with_options(config: DebiasConfig, options: dict[str, Any]) -> DebiasConfig:
    """`config` with single options set."""
    whole = RunConfig(debias=config)
    return merge(whole, {f"debias.{name}": value for name, value in options.items()}).debias


def prepare(run: Run, config: DebiasConfig, clock: StageClock) -> Job:
    """Refuse before long work what cannot be done.

    Raises:
        UsageError: An unknown metric, curvature or solver, or groups that are missing.
    """
    objective = Objective.parse(config.objective)
    check_options(config)
    if config.metric == "adam":
        adam_of(run)
    if config.update == "replay":
        trajectory_folder(run)
    wanted = [name for name in config.also if name not in (*objective.names, "val_loss")]
    also = [find_metric(name) for name in wanted]
    with clock.stage("prepare"):
        valid = make_prompts(run.split, run.split.valid, run.config.data)
        test = make_prompts(run.split, run.split.test, run.config.data)
    objective.check(valid.side)
    metrics = [term.metric for term in objective.terms] + also
    return Job(run, config, objective, metrics, valid, test, clock)


def adam_of(run: Run) -> Adam:
    """The optimiser's state where the run's training stopped.

    Raises:
        UsageError: It is not known.
    """
    if run.adam is None:
        raise UsageError(
            "the damping was to be in the metric of Adam (debias.metric: adam)",
            f"the run has no {FILE}: its adapter was trained elsewhere, or before runs kept it",
            "Train it with `fudlr train`, or use the metric identity with a larger --damping",
        )
    return run.adam


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
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
