"""The unrolled training as rows of gradients, and the update that repeats it without samples.

Row i is n ∂θ*/∂m_i, through the whole training. With H⁻¹ = 1 every formula of the closed form then
speaks of the training instead of its optimum: influence (1/n) rows · ∇F, update (1/n) Σ m_i row_i.
The rows are never made: products with them go through the batches, forwards or backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.gradients.store.rows import check_columns
from fudlr.influence.solvers import Solution, Status
from fudlr.influence.unroll import FOLDER, Replay, Steps
from fudlr.influence.update import Update, finish
from fudlr.run import Run
from fudlr.train.adapter import learning_rates


def has_trajectory(run: Run) -> bool:
    """Whether the run keeps its training's batches."""
    return run.folder is not None and (run.folder / FOLDER).is_dir()


def trajectory_folder(run: Run) -> Path:
    """Where the run keeps its training's batches.

    Raises:
        UsageError: It keeps none.
    """
    if run.folder is None or not has_trajectory(run):
        raise UsageError(
            "the training was to be unrolled without some samples (debias.update: unrolled)",
            f"the run {run.folder or 'in memory'} has no folder {FOLDER}: no batch was kept",
            "Train with record.trajectory=float32 and train.through=engine, or use closed_form",
        )
    return run.folder / FOLDER


def replay_of(run: Run) -> Replay:
    """The run's training, to be unrolled.

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


def unrolled_update(run: Run, replay: Replay) -> Callable[[Tensor], Update]:
    """The update that repeats the training without the samples of a mask `[n]`."""

    def remove(mask: Tensor) -> Update:
        delta = replay.update(mask).to(run.theta) - run.theta
        return finish(run.theta, delta, as_it_is(delta[None]))

    return remove


class UnrolledRows:
    """The rows of an unrolled training, seen through their products; see `store.GradientRows`."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    @property
    def n(self) -> int:
        """Number of samples."""
        return self._replay.n

    @property
    def d(self) -> int:
        """Number of parameters."""
        return self._replay.d

    def dots(self, vectors: Tensor) -> Tensor:
        """G Vᵀ, `[n, k]`, for `vectors` V `[k, d]`; one pass from the last batch back."""
        check_columns(vectors, self.d, "vectors", "d")
        return self.n * self._replay.influence(vectors)

    def sum(self, weights: Tensor) -> Tensor:
        """Σ_i w_i g_i, `[w, d]`, for `weights` `[w, n]`; one pass over the batches."""
        check_columns(weights, self.n, "weights", "n")
        return self.n * self._replay.tangent(weights)

    def gram_product(self, vectors: Tensor, weights: Tensor | None = None) -> Tensor:
        """V Gᵀ diag(w) G / n, `[k, d]`, for `vectors` `[k, d]`; `weights` `[n]` or ones."""
        dots = self.dots(vectors)
        weighted = dots if weights is None else dots * weights[:, None]
        return self.sum(weighted.T.contiguous()) / self.n
