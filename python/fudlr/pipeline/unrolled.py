"""The unrolled update for a run: whether its store has the training, and the training repeated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fudlr.common.errors import StoreError, UsageError
from fudlr.gradients.recording import STORE
from fudlr.gradients.store import Store
from fudlr.gradients.store.manifest import read_manifest
from fudlr.influence.solvers import Solution, Status
from fudlr.influence.unroll import Unrolled
from fudlr.influence.update import Update, finish
from fudlr.run import Run


def why_not_unrolled(run: Run, named: str | None) -> str:
    """Why the run's training cannot be unrolled from its store or the one `named`; empty where it
    can, as far as the manifest tells."""
    folder = Path(named) if named else run.folder and run.folder / STORE
    if not folder or not folder.is_dir():
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


def unrolled_run(run: Run, named: str | None = None) -> tuple[Store, Unrolled]:
    """The run's training, to be repeated, and the store that it is in: its own or the one `named`.

    Raises:
        UsageError: There is none.
        DataError: The store's steps do not lead to the run's adapter.
        StoreError: The store is damaged, or of another run.
    """
    reason = why_not_unrolled(run, named)
    store = None
    if not reason:
        store = run.store(Path(named)) if named else run.store()
    if store is None:
        raise UsageError(
            "the training was to be unrolled (debias.update=unrolled)",
            reason,
            "Train with record.epochs=all, or set debias.update to closed_form",
        )
    samples = run.split.train
    unrolled = Unrolled.of(
        store,
        run.engine.shapes,
        order=torch.from_numpy(samples.ids),
        theta=run.theta,
        terms=run.recommender.terms(samples),
    )
    return store, unrolled


def as_it_is(rhs: Tensor) -> Solution:
    """H⁻¹ = 1, where rows are of the whole training: nothing is left to be solved."""
    count = len(rhs)
    return Solution(rhs, torch.zeros(count), 0, (Status.CONVERGED,) * count, "nothing was solved")


def unrolled_update(run: Run, unrolled: Unrolled) -> Callable[[Tensor], Update]:
    """The update that repeats the training without the samples of a mask `[n]`."""

    def remove(mask: Tensor) -> Update:
        delta = unrolled.update(mask).to(run.theta) - run.theta
        return finish(run.theta, delta, as_it_is(delta[None]))

    return remove
