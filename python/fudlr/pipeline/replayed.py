"""The update that goes the training again, and evidence from the trajectory alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.influence.solvers import Solution, Status
from fudlr.influence.unroll import FOLDER, Replay, Steps
from fudlr.influence.update import Update, finish
from fudlr.run import Run
from fudlr.train.adapter import learning_rates


def trajectory_folder(run: Run) -> Path:
    """Where the run keeps its training's batches.

    Raises:
        UsageError: It keeps none.
    """
    folder = None if run.folder is None else run.folder / FOLDER
    if folder is None or not folder.is_dir():
        raise UsageError(
            "the training was to be gone again without some samples (debias.update: replay)",
            f"the run {run.folder or 'in memory'} has no folder {FOLDER}: no batch was kept",
            "Train with record.trajectory=float32 and train.through=engine, or use another update",
        )
    return folder


def replay_of(run: Run) -> Replay:
    """The run's training, to be gone again.

    Raises:
        UsageError: The run keeps none.
        DataError: It is damaged, or another adapter's.
    """
    folder = trajectory_folder(run)
    config, n = run.config.train, len(run.split.train)
    steps = Steps(folder, config.epochs * ceil(n / config.batch))
    rates = learning_rates(config, len(steps))
    return Replay(
        steps,
        run.engine.shapes,
        rates=rates,
        l2=config.l2,
        samples=n,
        start=run.start,
        theta=run.theta,
        terms=run.recommender.terms(run.split.train),
    )


def as_it_is(rhs: Tensor) -> Solution:
    """H⁻¹ = 1, where rows are of the whole training: nothing is left to be solved."""
    count = len(rhs)
    return Solution(rhs, torch.zeros(count), 0, (Status.CONVERGED,) * count, "nothing was solved")


def replayed(run: Run, replay: Replay) -> Callable[[Tensor], Update]:
    """The update that goes the training again without the samples of a mask `[n]`."""

    def remove(mask: Tensor) -> Update:
        delta = replay.update(mask).to(run.theta) - run.theta
        update = finish(run.theta, delta, as_it_is(delta[None]))
        return replace(update, details={"replayed": True})

    return remove
