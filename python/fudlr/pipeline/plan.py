"""A plan: the run, what is asked of it, and every option resolved before long work.

Which options go together is decided here and nowhere else. An option that a command or another
option leaves without effect is refused, with what to change.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from fudlr.common.batches import Batches
from fudlr.common.errors import UsageError
from fudlr.common.progress import StageClock, track
from fudlr.config import DebiasConfig, RunConfig, merge
from fudlr.data import DataWarning, holdout_users
from fudlr.data.interactions import Ints
from fudlr.evaluation import Prompts
from fudlr.gradients.matrix import Forward, Loss
from fudlr.gradients.metric import (
    VALIDATION_LOSS,
    MetricGradient,
    MetricGradients,
    metric_gradients,
)
from fudlr.gradients.recording import STORE
from fudlr.gradients.store import StoreError
from fudlr.gradients.store.bergson import is_index
from fudlr.gradients.store.manifest import read_manifest
from fudlr.influence.curvature import CURVATURES
from fudlr.influence.solvers import SOLVERS
from fudlr.metrics import Metric, Objective, find_metric
from fudlr.run import Run
from fudlr_ext import Engine

Command = Literal["debias", "forget", "sweep", "grouped"]
Rows = Literal["unrolled", "store", "store or memory", "memory", "stream"]
"""Where rows come from: the whole training; the store, or else an error; the store, or else memory;
gradients taken anew, kept or not."""

CLOSED_FORM = ("candidates", "curvature", "damping", "solver", "newton_steps")
"""Options that only the closed form follows."""


@dataclass(frozen=True)
class Plan:
    """A run and what is asked of it.

    Attributes:
        run: What is to be debiased.
        config: With which options.
        objective: What should fall.
        metrics: Those of the objective, then those that are only looked at.
        valid, test: Prompts for gradients and for figures.
        clock: Seconds of each stage.
        rows: Where rows come from.
        solver: Key in `SOLVERS`.
        why: Why the update is what it is, in words.
        exact: Whether an unrolled update takes removed samples' gradients again. What a sample
            teaches of itself alone lies mostly outside the directions that sketches keep.
    """

    run: Run
    config: DebiasConfig
    objective: Objective
    metrics: list[Metric]
    valid: Prompts
    test: Prompts
    clock: StageClock
    rows: Rows
    solver: str
    why: str
    exact: bool = False

    @property
    def update(self) -> str:
        """`unrolled` or `closed_form`."""
        return "unrolled" if self.rows == "unrolled" else "closed_form"

    @property
    def seed(self) -> int:
        """Of candidates, of the halves of held-out users, and of resampling."""
        return self.run.config.seed

    @property
    def needs_loss(self) -> bool:
        """Whether the validation loss's gradient is asked for; it costs a pass of its own."""
        return self.config.lambda_acc > 0 or VALIDATION_LOSS in self.config.also

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

    def gradients(
        self, prompts: Prompts, parts: int = 0, known: Mapping[str, MetricGradient] | None = None
    ) -> MetricGradients:
        """Gradients of all metrics, and of the loss where needed, on `prompts`.

        With `parts`, what each of so many random parts of the prompts adds is kept, where there are
        as many prompts; each is of one of the `halves`, in their order. What is in `known`, of the
        same prompts, is taken from there, and the rest is computed.
        """
        known = known or {}
        loss = self.needs_loss and VALIDATION_LOSS not in known
        divided = self._divided(prompts, parts) if parts else None
        if divided is not None:
            prompts = prompts.take(divided[0].numpy())
        found = metric_gradients(
            self.run.recommender,
            self.run.engine,
            prompts.samples,
            prompts.side,
            [metric for metric in self.metrics if metric.name not in known],
            validation_loss=loss,
            batch_size=self.config.batch,
            parts=divided[1] if divided else (),
        )
        if divided is not None:
            back = divided[0].argsort()
            found.scores, found.losses = found.scores[back], found.losses[back]
        every = {**known, **found}
        return MetricGradients(
            {name: every[name] for name in self.names}, found.scores, found.losses, found.parts
        )

    @property
    def names(self) -> list[str]:
        """Of the gradients, in their order."""
        return [m.name for m in self.metrics] + [VALIDATION_LOSS] * self.needs_loss

    def halves(self, prompts: Prompts) -> tuple[Ints, Ints]:
        """The prompts in two halves, by user, for figures on users that did not steer."""
        return holdout_users(prompts.samples, 0.5, self.seed)

    def _divided(self, prompts: Prompts, parts: int) -> tuple[torch.Tensor, list[int]] | None:
        """The prompts in random order, half after half, and sizes of as many parts of each; None
        where they are too few."""
        count = len(prompts.samples)
        several = len(np.unique(prompts.samples.user)) > 1
        halves = self.halves(prompts) if several else (np.arange(count),)
        generator = torch.Generator().manual_seed(self.seed)
        order = [torch.from_numpy(own)[torch.randperm(len(own), generator=generator)]
                 for own in halves]  # fmt: skip
        sizes = [len(part) for own in order for part in own.tensor_split(parts // len(halves))]
        return (torch.cat(order), sizes) if all(sizes) else None


def prepare(
    run: Run, config: DebiasConfig, clock: StageClock | None = None, command: Command = "debias"
) -> Plan:
    """Resolve all options.

    Raises:
        UsageError: An unknown metric, curvature or solver; groups that are missing; options that do
            not go together, or that `command` does not follow.
    """
    clock = clock or StageClock()
    objective = Objective.parse(config.objective)
    _check_names(config)
    for rule in _rules(config, command):
        if rule.broken:
            raise UsageError(rule.asked, rule.found, rule.remedy)
    rows, why = _rows(run, config)
    wanted = [name for name in config.also if name not in (*objective.names, VALIDATION_LOSS)]
    also = [find_metric(name) for name in wanted]
    with clock.stage("prepare"):
        valid, test = run.valid, run.test
    objective.check(valid.side)
    metrics = [term.metric for term in objective.terms] + also
    solver = _solver(config)
    exact = command == "forget"
    return Plan(run, config, objective, metrics, valid, test, clock, rows, solver, why, exact)


class _Rule(NamedTuple):
    broken: bool
    asked: str
    found: str
    remedy: str


def _check_names(config: DebiasConfig) -> None:
    for kind, name, known in (
        ("curvature", config.curvature, sorted(CURVATURES)),
        ("solver", config.solver, ["auto", *sorted(SOLVERS)]),
    ):
        if name not in known:
            raise UsageError(
                f"the {kind} {name!r} was asked for",
                "there is none of that name",
                f"Choose one of {', '.join(known)}",
            )


def _rules(config: DebiasConfig, command: Command) -> Iterator[_Rule]:
    """What does not go together, and what a command would not follow."""
    yield _Rule(
        command == "grouped" and bool(config.also),
        f"influences on {', '.join(config.also)} were asked for as well (debias.also)",
        "a grouped request writes scores for the objective alone",
        "Leave debias.also out, or make a request of its own with `fudlr debias`",
    )
    closed = _named(_set(config, CLOSED_FORM))
    unfit, has_inverse = _why_no_store(config), hasattr(CURVATURES[config.curvature], "inverse")
    yield _Rule(
        config.lambda_fair == 0 and config.lambda_acc == 0,
        "samples were to be scored",
        "debias.lambda_fair and debias.lambda_acc are both 0, so that all samples score the same",
        "Raise one of them",
    )
    yield _Rule(
        config.update == "unrolled" and bool(closed),
        "an unrolled update was asked for (debias.update)",
        f"it takes no curvature and no other rows than the training's: {closed} would do nothing",
        "Leave them out, or set debias.update to closed_form",
    )
    yield _Rule(
        config.update == "unrolled" and config.rows != "auto",
        "an unrolled update was asked for (debias.update)",
        f"its rows are those of the whole training, not debias.rows={config.rows}",
        "Leave debias.rows out, or set debias.update to closed_form",
    )
    yield _Rule(
        config.store is not None and config.rows in ("memory", "stream"),
        f"a request was to be answered from the store {config.store}",
        f"debias.rows={config.rows} uses none",
        "Leave out one of the two",
    )
    yield _Rule(
        bool(unfit) and (config.rows == "store" or config.store is not None),
        "a request was to be answered from a store (debias.rows: store)",
        unfit,
        "Leave that option out, or set debias.rows to memory",
    )
    yield _Rule(
        config.solver == "direct" and not has_inverse,
        f"the solver direct was asked for with the curvature {config.curvature}",
        "it has no closed form of the damped inverse",
        "Use the solver cg, or the curvature ekfac or identity",
    )
    yield _Rule(
        config.newton_steps > 0 and not CURVATURES[config.curvature].couples_layers,
        f"Newton steps were asked for with the curvature {config.curvature}",
        "it has no entries between layers, and only its one step can be rescaled",
        "Use empirical_fisher, ggn or hessian, or leave debias.newton_steps out",
    )
    yield _Rule(
        config.newton_steps > 0 and config.candidates < 1,
        "Newton steps were asked for with a share of candidates (debias.candidates)",
        "only candidates' gradients are taken, and the steps need those of all samples",
        "Set debias.candidates to 1, or leave debias.newton_steps out",
    )


def _set(config: DebiasConfig, names: Iterable[str]) -> list[str]:
    """Those of the options that are not at their default."""
    fields = DebiasConfig.model_fields
    return [name for name in names if getattr(config, name) != fields[name].default]


def _solver(config: DebiasConfig) -> str:
    if config.solver != "auto":
        return config.solver
    return "direct" if hasattr(CURVATURES[config.curvature], "inverse") else "cg"


def _why_no_store(config: DebiasConfig) -> str:
    """Why sketches cannot answer what is asked; empty where they can."""
    if not CURVATURES[config.curvature].from_rows:
        return f"the curvature {config.curvature} is a product through the model, not with rows"
    if config.newton_steps:
        return "Newton steps need whole gradients"
    if config.candidates < 1:
        return "a share of candidates (debias.candidates) is for requests without a store"
    return ""


def _rows(run: Run, config: DebiasConfig) -> tuple[Rows, str]:
    """Where rows come from, and why the update is what it is.

    Raises:
        UsageError: The training was to be unrolled, and is in no store.
    """
    reason = why_not_unrolled(run, config.store)
    if config.update == "unrolled":
        if reason:
            raise cannot_unroll(reason)
        return "unrolled", "unrolled, as asked for"
    closed = _set(config, CLOSED_FORM)
    if config.rows != "auto":
        reason = f"debias.rows={config.rows} is of the adapter alone"
    if closed:
        reason = f"{_named(closed)} goes with it alone"
    if config.update == "closed_form":
        reason = "as asked for"
    if not reason:
        return "unrolled", "unrolled, since the store has the whole training"
    why = f"closed form, {'' if reason == 'as asked for' else 'since '}{reason}"
    if config.store is not None or config.rows == "store":
        return "store", why
    if config.rows != "auto":
        return config.rows, why
    return "memory" if _why_no_store(config) else "store or memory", why


def cannot_unroll(reason: str) -> UsageError:
    """The error of an unrolled update that cannot be, for this reason."""
    return UsageError(
        "the training was to be unrolled (debias.update=unrolled)",
        reason,
        "Train with record.epochs=all, or set debias.update to closed_form",
    )


def why_not_unrolled(run: Run, named: str | None) -> str:
    """Why the run's training cannot be unrolled from its store or the one `named`; empty where it
    can, as far as the manifest tells."""
    folder = Path(named) if named else run.folder and run.folder / STORE
    if not folder or not folder.is_dir() or is_index(folder):
        return "there is no store"
    try:
        manifest = read_manifest(folder)
    except StoreError as error:
        return f"the store cannot be used ({error.found})"
    if manifest is None or manifest.binding is None:
        return "the store's recording was not finished"
    if manifest.recipe is None:
        return "the store has rows of the trained adapter alone, not of its training"
    if manifest.binding != run.binding:
        return "the store is of another adapter or other data"
    return ""


def _named(names: Iterable[str]) -> str:
    return ", ".join(f"debias.{name}" for name in names)


def with_options(config: DebiasConfig, options: dict[str, Any]) -> DebiasConfig:
    """`config` with single options set."""
    whole = RunConfig(debias=config)
    return merge(whole, {f"debias.{name}": value for name, value in options.items()}).debias


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
