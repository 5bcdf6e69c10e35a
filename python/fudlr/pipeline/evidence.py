"""Rows of gradients for a request, and H⁻¹ in their space.

A store answers without the training data: rows and curvature are its sketches. Without one, whole
gradients are computed, of all samples or of candidates, and kept, or computed again for each
product. An unrolled training answers for the whole of it, and no curvature is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fudlr.common.errors import NumericalError, UsageError
from fudlr.common.parallel import ranks
from fudlr.data import Samples
from fudlr.gradients import GradientMatrix, Space, StreamedRows, record_rows
from fudlr.gradients.recording import shortfall
from fudlr.gradients.shared import shared
from fudlr.gradients.store import Store, StoredRows, StoreError
from fudlr.gradients.store.bergson import BergsonIndex, IndexRows, compare, is_index
from fudlr.influence.curvature import CURVATURES, EmpiricalFisher, Parts
from fudlr.influence.solvers import (
    Solution,
    Solve,
    Status,
    make_solver,
    sampled_preconditioner,
)
from fudlr.influence.unroll import Unrolled, UnrolledRows
from fudlr.influence.update import KeptLoss, Update, finish, newton_update, removal_update
from fudlr.pipeline.plan import Plan
from fudlr.pipeline.unrolling import Retraining, TakenAgain, named_store, unrolled_run

MAX_STEPS = 20
"""Of conjugate gradients; in sketch space a backstop, since the tolerance is to end a solve."""
SKETCH_TOLERANCE = 0.01
"""Relative residual: small beside what the sketches themselves take from influences, which the
store's audit says."""
LOADED_BYTES = 2**30
"""Rows of a store up to this size in float32 are kept in memory; larger ones are streamed."""
COMPARED = 8
"""Rows of an index that are compared with gradients of the model."""
STATIONARY = 0.1
"""Share of the gradient that is left at θ* up to which training counts as converged. A training of
twenty epochs with λ = 0.1 leaves 0.05 to 0.06, the demo's own, stopped early, about 0.4."""
EARLY = 3.0
"""Times λ, the damping where training stopped early."""
PRECONDITIONER_ROWS = 512
"""Rows m that the preconditioner is made from: more save steps of 4 n p operations each, and cost
m² p once and 4 m p a step."""


def as_it_is(rhs: Tensor) -> Solution:
    """H⁻¹ = 1, where rows are of the whole training: nothing is left to be solved."""
    count = len(rhs)
    return Solution(rhs, torch.zeros(count), 0, (Status.CONVERGED,) * count, "nothing was solved")


class Remove(Protocol):
    """See `Evidence.remove`."""

    def __call__(self, masks: Tensor) -> list[Update]:
        """An update for each of `masks` `[k, n]`."""
        ...


def _not_solved(masks: Tensor) -> list[Update]:
    raise RuntimeError("these rows have no solver: `solvers` gives the evidence one")


@dataclass(frozen=True)
class Evidence:
    """Rows of gradients; and H⁻¹ in their space, once `solvers` has put it there.

    Attributes:
        source: `unrolled`, `store`, `memory` or `stream`.
        space: The rows and the way to the adapter's parameters.
        mean_gradient: Gives ḡ [d], which the damping is chosen by.
        warnings: Why it is not what was asked for, if so.
        about: Facts for the summary.
        unrolled: The training, where rows are of all of it.
        retraining: Repeats it, likewise, once `solvers` was there.
        damping: Of H; 0 where none is asked for.
        solve: H⁻¹ in that space, for scores and update alike.
        remove: Takes the samples of each of some masks `[k, n]` out of θ*; the model holds θ*
            before and after.
    """

    source: str
    space: Space
    mean_gradient: Callable[[], Tensor]
    warnings: list[str]
    about: dict[str, object]
    unrolled: Unrolled | None = None
    retraining: Retraining | None = None
    damping: float = 0.0
    solve: Solve = as_it_is
    remove: Remove = _not_solved


def gather(plan: Plan) -> Evidence:
    """The rows that the plan asks for; a store's are opened, others computed.

    Raises:
        UsageError: A store was asked for and there is none.
        StoreError: The store is damaged, or belongs to another adapter.
    """
    run, said = plan.run, list(plan.run.notes)
    unrolled = None
    if plan.rows == "unrolled":
        store, unrolled = unrolled_run(run, plan.config.store)
        space = Space(UnrolledRows(unrolled), unrolled.n)
    elif plan.config.store and is_index(Path(plan.config.store)):
        return _from_index(plan, Path(plan.config.store), said)
    elif plan.rows in ("store", "store or memory") and (found := _open_store(plan, said)):
        store, order = found, torch.from_numpy(run.split.train.ids)
        small = 4 * len(order) * store.dim <= LOADED_BYTES * ranks().size

        def stored(index: Tensor) -> GradientMatrix:
            rows = StoredRows(store, order[index])
            return rows.load() if small else rows

        # As they lie in the store, so that a rank reads a part of it.
        rows = shared(lambda: store.places(order).argsort(), len(order), stored)
        terms = terms_of(plan, run.split.train)
        space = Space(rows, rows.n, store.projection(), terms=terms)
    else:
        return _from_model(plan, said)
    mean, short = store.mean_gradient(), shortfall(store, run.config)

    def mean_gradient() -> Tensor:
        if mean is not None:
            return mean.to(run.theta)
        # What is left of it in the sketches, where the whole was not kept.
        return space.lift(_mean(space.rows, torch.zeros(())))[0]

    about: dict[str, object] = {"dimension": store.dim, "dtype": store.dtype, "steps": store.steps}
    facts = {"audit": store.audit, "dropout": store.manifest.dropout}
    about |= {name: fact for name, fact in facts.items() if fact}
    source = "store" if unrolled is None else "unrolled"
    said = [short, *said] if short else said
    return Evidence(source, space, mean_gradient, said, about, unrolled)


def solvers(plan: Plan, rows: Evidence) -> Evidence:
    """The damping and H⁻¹ for rows that were gathered."""
    run, space = plan.run, rows.space
    trained = (run.config.train.l2, rows.mean_gradient(), run.theta, run.start)
    about = {"rows": rows.source, "gradient_left": stationarity(*trained), **rows.about}
    if (unrolled := rows.unrolled) is not None:
        exact = TakenAgain(plan) if plan.exact and not rows.about.get("dropout") else None
        retraining = Retraining(run, unrolled, exact)

        def retrain(masks: Tensor) -> list[Update]:
            """The training repeated without the samples of each mask."""
            shifts, ratio, said = retraining.without(masks)
            about = {"stiffness": ratio}
            return [
                replace(done, details={**done.details, **about}, warnings=[*said, *done.warnings])
                for delta in shifts
                for done in [finish(run.theta, delta, as_it_is(delta[None]))]
            ]

        return replace(rows, about=about, retraining=retraining, remove=retrain)
    damping = plan.config.damping or choose_damping(*trained)
    if rows.source == "store":
        solve = sketch_solver(space, damping)
        one = _one_step(plan, space, solve)
    else:
        solve, one = _whole(plan, space, damping)

    def remove(masks: Tensor) -> list[Update]:
        return [one(mask) for mask in masks]

    return replace(rows, about=about, damping=damping, solve=solve, remove=remove)


def stationarity(l2: float, mean_gradient: Tensor, theta: Tensor, start: Tensor) -> float:
    """|ḡ + λ(θ* − θ₀)| / (|ḡ| + λ|θ* − θ₀|): 0 at an optimum, 1 before the first step.

    How far the mean gradient ḡ [d] and λ's part cancel, as they do where ∇L = 0.
    """
    regulariser = l2 * (theta - start)
    whole = float(mean_gradient.norm() + regulariser.norm())
    return float((mean_gradient + regulariser).norm()) / whole if whole else 0.0


def choose_damping(l2: float, mean_gradient: Tensor, theta: Tensor, start: Tensor) -> float:
    """A damping that a user need not think about: λ at a stationary point, 3 λ short of one.

    Where training stopped early the loss still falls, and its curvature changes along the way that
    retraining goes; docs/method.md says how the rule was tested. `l2` is λ, and the mean gradient
    that of the training samples.

    Raises:
        NumericalError: λ is 0, so that nothing sets the scale.
    """
    if l2 == 0:
        raise NumericalError(
            "a damping was to be chosen",
            "the training had no λ (train.l2 is 0), so that nothing sets its scale",
            "Give one with --damping; 0.01 to 0.1 suit a mean loss in nats",
        )
    return l2 if stationarity(l2, mean_gradient, theta, start) <= STATIONARY else EARLY * l2


def sketch_solver(space: Space, damping: float) -> Solve:
    """H⁻¹ in sketch space: conjugate gradients, preconditioned with a sample of the rows."""
    every = max(1, space.rows.n // PRECONDITIONER_ROWS)
    index = torch.arange(0, space.rows.n, every)
    part = space.rows.take(index)  # type: ignore[attr-defined]
    if space.terms is not None:
        part = part * space.terms[index].to(part).sqrt()[:, None]
    return make_solver(
        EmpiricalFisher(Parts(space.rows, terms=space.terms)),
        damping,
        "cg",
        max_steps=MAX_STEPS,
        tolerance=SKETCH_TOLERANCE,
        preconditioner=sampled_preconditioner(part, damping),
    )


def terms_of(plan: Plan, samples: Samples) -> Tensor | None:
    """T [n], of how many terms each loss is the mean; None where every one is of one."""
    terms = plan.run.recommender.terms(samples)
    return None if bool((terms == 1).all()) else terms.to(plan.run.theta)


def sample_candidates(n: int, share: float, seed: int) -> Tensor:
    """A random share of n samples, at least one, by `seed` alone: sorted `[⌈share · n⌉]`."""
    generator = torch.Generator().manual_seed(seed)
    count = min(n, math.ceil(share * n - 1e-9))
    return torch.randperm(n, generator=generator)[:count].sort().values


def rescaled(update: Update, theta: Tensor, right: Tensor, space: Space, damping: float) -> Update:
    """A step without cross-layer curvature, cut to where the quadratic model with it is lowest.

    α = bᵀp / (pᵀ H p),   b = (1/n) Gᵀ m,   pᵀ H p = mean T_i (g_iᵀp)² + damping ‖p‖²

    with p [d] the update's shift, b `right` [d] and G the space's whole gradients.

    Raises:
        NumericalError: The step does not descend.
    """
    shift = update.delta
    if not float(shift.norm()):
        return update  # nothing is removed
    applied = space.rows.gram_product(shift[None], space.terms)[0] + damping * shift
    bend, fall = float(shift.double() @ applied.double()), float(right.double() @ shift.double())
    if not bend > 0 or not fall > 0:
        raise NumericalError(
            "an update without entries between layers was to be rescaled",
            f"along it the loss falls by {fall:.3g} with a curvature of {bend:.3g}, where both "
            "should be above 0",
            "Raise the damping, or use empirical_fisher",
        )
    alpha = fall / bend
    warning = (
        f"The curvature has no entries between layers: its step was cut to {alpha:.3g} of its "
        "length, by products with all gradients. It ranks samples; for an update empirical_fisher "
        "agrees better with retraining."
    )
    found = finish(theta, alpha * shift, update.solution)
    return replace(found, warnings=[*found.warnings, warning], details={"rescaled": alpha})


def _one_step(plan: Plan, space: Space, solve: Solve) -> Callable[[Tensor], Update]:
    """θ* + (1/n) H⁻¹ Gᵀ m."""

    def remove(mask: Tensor) -> Update:
        lift = None if space.projection is None else space.lift
        rows, theta = space.rows, plan.run.theta
        return removal_update(theta, rows, space.of_rows(mask), solve, n=space.total, lift=lift)

    return remove


def _whole(plan: Plan, space: Space, damping: float) -> tuple[Solve, Callable[[Tensor], Update]]:
    """H⁻¹ and the update with whole gradients, by the curvature that the options name."""
    run, config = plan.run, plan.config
    kind, theta = CURVATURES[config.curvature], run.theta
    scored = _scored(plan, space.index)
    parts = Parts(space.rows, None, space.terms, *plan.face, plan.batches(samples=scored))
    options = {"max_steps": MAX_STEPS} if plan.solver == "cg" else {}

    def solver_of(weights: Tensor | None) -> Solve:
        curvature = kind(replace(parts, weights=weights))
        return make_solver(curvature, damping, plan.solver, **options)

    run.engine.load(theta)
    solve = solver_of(None)
    one_step = _one_step(plan, space, solve)

    def remove(mask: Tensor) -> Update:
        run.engine.load(theta)
        first = one_step(mask)
        if not kind.couples_layers:
            weights = space.of_rows(mask).to(theta)[None]
            right = space.rows.sum(weights)[0] / space.total
            return rescaled(first, theta, right, space, damping)
        if not config.newton_steps:
            return first
        kept = KeptLoss(parts, mask, theta, run.start, run.config.train.l2)
        keep = 1 - mask.to(theta)
        return newton_update(first, kept, lambda: solver_of(keep), config.newton_steps)

    return solve, remove


def _open_store(plan: Plan, warnings: list[str]) -> Store | None:
    """The store to answer from; None where there is none to be had, and none has to be."""
    try:
        store = named_store(plan.run, plan.config.store)
        if store is not None:
            store.places(torch.from_numpy(plan.run.split.train.ids))
    except StoreError as error:
        if plan.rows == "store":
            raise
        warnings.append(
            f"The run's store was not used: {error.found}. All gradients were computed anew. "
            "Record again with `fudlr record`, or set debias.rows to memory."
        )
        return None
    if store is None and plan.rows == "store":
        raise UsageError(
            "a request was to be answered from a store (debias.rows: store)",
            "the run has none",
            "Make one with `fudlr record`",
        )
    return store


def _from_index(plan: Plan, folder: Path, warnings: list[str]) -> Evidence:
    """Rows of a bergson index, once some of them were compared with the model's own gradients."""
    index, samples = BergsonIndex(folder), plan.run.split.train
    ids = torch.from_numpy(samples.ids)
    order = ids if index.named else torch.arange(len(samples))
    if index.n != len(order):
        raise StoreError(
            f"the bergson index {folder} was to be used",
            f"it has {index.n} rows, and the run {len(order)} training samples",
            "Build it of the run's training samples, in their order",
        )
    rows = IndexRows(index, order, index.columns(plan.run.engine.shapes))
    some = torch.linspace(0, rows.n - 1, min(COMPARED, rows.n)).long()
    batches = plan.batches(samples=samples.take(some.numpy()))
    own = record_rows(*plan.face, batches).matrix
    compare(folder, ids[some], rows.take(some), own)
    space = Space(rows, rows.n, terms=terms_of(plan, samples))
    about: dict[str, object] = {"dimension": index.dim, "dtype": index.dtype, "index": "bergson"}
    return Evidence("store", space, lambda: _mean(rows, plan.run.theta)[0], warnings, about)


def _scored(plan: Plan, index: Tensor | None) -> Samples:
    """The samples that have a row."""
    samples = plan.run.split.train
    return samples if index is None else samples.take(index.numpy())


def _from_model(plan: Plan, warnings: list[str]) -> Evidence:
    share, n = plan.config.candidates, len(plan.run.split.train)
    index = sample_candidates(n, share, plan.seed) if share < 1 else None
    scored = _scored(plan, index)
    stream = plan.rows == "stream"

    def computed(index: Tensor) -> GradientMatrix:
        some = scored.take(index.numpy())
        if stream:
            return StreamedRows(*plan.face, plan.batches(samples=some))
        return record_rows(*plan.face, plan.batches("gradients of the samples", some))

    rows = shared(lambda: torch.arange(len(scored)), len(scored), computed)
    space = Space(rows, n, None, index, terms_of(plan, scored))
    about: dict[str, object] = {} if index is None else {"candidates": len(index)}
    source = "stream" if stream else "memory"
    return Evidence(source, space, lambda: _mean(rows, plan.run.theta)[0], warnings, about)


def _mean(rows: GradientMatrix, like: Tensor) -> Tensor:
    """The mean row, `[1, d]`."""
    return rows.sum(torch.full((1, rows.n), 1 / rows.n).to(like))
