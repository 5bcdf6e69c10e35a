"""Rows of gradients for a request, and H⁻¹ in their space.

A store answers without the training data: rows and curvature are its sketches. Without one, whole
gradients are computed, of all samples or of candidates, and kept, or computed again for each
product. An unrolled training answers for the whole of it, and no curvature is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fudlr.common.errors import NumericalError, UsageError
from fudlr.data import Samples
from fudlr.gradients import GradientMatrix, Space, StreamedRows, record_rows
from fudlr.gradients.recording import shortfall
from fudlr.gradients.store import Store, StoredRows, StoreError
from fudlr.influence.curvature import CURVATURES, EmpiricalFisher, Parts
from fudlr.influence.solvers import Solve, make_solver, sampled_preconditioner
from fudlr.influence.unroll import Unrolled, UnrolledRows
from fudlr.influence.update import KeptLoss, Update, finish, newton_update, removal_update
from fudlr.pipeline.damping import choose_damping, stationarity
from fudlr.pipeline.plan import Plan
from fudlr.pipeline.unrolled import as_it_is, unrolled_run, unrolled_update

MAX_STEPS = 20
"""Of conjugate gradients. In sketch space a backstop, where the tolerance is to end a solve."""
SKETCH_TOLERANCE = 0.01
"""Relative residual: small beside what the sketches themselves take from influences, which the
store's audit says."""
LOADED_BYTES = 2**30
"""Rows of a store up to this size in float32 are kept in memory; larger ones are streamed."""
PRECONDITIONER_ROWS = 512
"""Rows m that the preconditioner is made from: more save steps of 4 n p operations each, and cost
m² p once and 4 m p a step."""


@dataclass(frozen=True)
class Gathered:
    """Rows, before any damping or solver.

    Attributes:
        source: `unrolled`, `store`, `memory` or `stream`.
        space: The rows and the way to the adapter's parameters.
        mean_gradient: Gives ḡ [d], which the damping is chosen by.
        warnings: Why it is not what was asked for, if so.
        about: Facts for the summary.
        unrolled: The training, where rows are of all of it.
    """

    source: str
    space: Space
    mean_gradient: Callable[[], Tensor]
    warnings: list[str] = field(default_factory=list)
    about: dict[str, object] = field(default_factory=dict)
    unrolled: Unrolled | None = None


@dataclass(frozen=True)
class Evidence:
    """Rows of gradients, and H⁻¹ in their space.

    Attributes:
        source, space, warnings, about: As gathered.
        damping: Of H; 0 where none is asked for.
        solve: H⁻¹ in that space, for scores and update alike.
        remove: Takes the samples of a mask `[n]` out of θ*; the model holds θ* before and after.
    """

    source: str
    space: Space
    damping: float
    solve: Solve
    remove: Callable[[Tensor], Update]
    warnings: list[str] = field(default_factory=list)
    about: dict[str, object] = field(default_factory=dict)


def gather(plan: Plan) -> Gathered:
    """The rows that the plan asks for; a store's are opened, others computed.

    Raises:
        UsageError: A store was asked for and there is none.
        StoreError: The store is damaged, or belongs to another adapter.
    """
    warnings = list(plan.run.notes)
    if plan.rows == "unrolled":
        recorded, unrolled = unrolled_run(plan.run, plan.config.store)
        mean = recorded.mean_gradient()
        assert mean is not None  # a store of a training has it
        space = Space(UnrolledRows(unrolled), unrolled.n)
        said = _short(plan, recorded, warnings)
        return Gathered("unrolled", space, lambda: mean, said, _about(recorded), unrolled)
    store = None
    if plan.rows in ("store", "store or memory"):
        store = _open_store(plan, warnings)
    return _from_model(plan, warnings) if store is None else _from_store(plan, store, warnings)


def solvers(plan: Plan, gathered: Gathered) -> Evidence:
    """The damping and H⁻¹ for rows that were gathered."""
    run, space = plan.run, gathered.space
    trained = (run.config.train.l2, gathered.mean_gradient(), run.theta, run.start)
    about = {
        "rows": gathered.source,
        "gradient_left": stationarity(*trained),
        **gathered.about,
    }
    found = (gathered.warnings, about)
    if gathered.unrolled is not None:
        remove = unrolled_update(run, gathered.unrolled)
        return Evidence("unrolled", space, 0.0, as_it_is, remove, *found)
    damping = plan.config.damping or choose_damping(*trained)
    if gathered.source == "store":
        solve = sketch_solver(space, damping)
        return Evidence("store", space, damping, solve, _one_step(plan, space, solve), *found)
    solve, remove = _whole(plan, space, damping)
    return Evidence(gathered.source, space, damping, solve, remove, *found)


def sketch_solver(space: Space, damping: float) -> Solve:
    """H⁻¹ in sketch space: conjugate gradients, preconditioned with a sample of the rows."""
    every = max(1, space.rows.n // PRECONDITIONER_ROWS)
    index = torch.arange(0, space.rows.n, every)
    part = space.rows.take(index)  # type: ignore[attr-defined]
    if space.terms is not None:
        part = part * space.terms[index].to(part).sqrt()[:, None]
    return make_solver(
        EmpiricalFisher(space.rows, space.terms),
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

    Args:
        update: With the proposed shift p [d].
        theta: θ* [d].
        right: b [d].
        space: Whole gradients.
        damping: Absolute.

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
    batches = plan.batches(samples=_scored(plan, space.index))
    parts = Parts(*plan.face, batches, space.rows, terms=space.terms)
    options = {"max_steps": MAX_STEPS} if plan.solver == "cg" else {}

    def solver_of(weights: Tensor | None) -> Solve:
        curvature = kind.make(replace(parts, weights=weights))
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
        kept = KeptLoss(
            *plan.face,
            batches,
            rows=space.rows,
            mask=mask,
            theta=theta,
            start=run.start,
            l2=run.config.train.l2,
        )
        keep = 1 - mask.to(theta)
        return newton_update(first, kept, lambda: solver_of(keep), config.newton_steps)

    return solve, remove


def _open_store(plan: Plan, warnings: list[str]) -> Store | None:
    """The store to answer from; None where there is none to be had, and none has to be."""
    named = plan.config.store
    try:
        store = plan.run.store(Path(named)) if named else plan.run.store()
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


def _from_store(plan: Plan, store: Store, warnings: list[str]) -> Gathered:
    projection = store.projection()
    if projection is None:
        raise StoreError(
            f"the store {store.folder} was to answer a request",
            "it does not say how its rows were projected",
            "Record it with `fudlr record`",
        )
    rows = StoredRows(store, torch.from_numpy(plan.run.split.train.ids))
    small = 4 * rows.n * rows.d <= LOADED_BYTES
    terms, mean = terms_of(plan, plan.run.split.train), store.mean_gradient()
    space = Space(rows.load() if small else rows, rows.n, projection, terms=terms)

    def mean_gradient() -> Tensor:
        if mean is not None:
            return mean.to(plan.run.theta)
        # What is left of it in the sketches, where the whole was not kept.
        return space.lift(_mean(space.rows, torch.zeros(())))[0]

    return Gathered("store", space, mean_gradient, _short(plan, store, warnings), _about(store))


def _about(store: Store) -> dict[str, object]:
    about: dict[str, object] = {"dimension": store.dim, "dtype": store.dtype, "steps": store.steps}
    return {**about, "audit": store.audit} if store.audit else about


def _short(plan: Plan, store: Store, warnings: list[str]) -> list[str]:
    """What the store lacks of the energy asked for, before all other warnings."""
    found = shortfall(store, plan.run.config)
    return [found, *warnings] if found else warnings


def _scored(plan: Plan, index: Tensor | None) -> Samples:
    """The samples that have a row."""
    samples = plan.run.split.train
    return samples if index is None else samples.take(index.numpy())


def _from_model(plan: Plan, warnings: list[str]) -> Gathered:
    config, n = plan.config, len(plan.run.split.train)
    index = sample_candidates(n, config.candidates, plan.seed) if config.candidates < 1 else None
    scored = _scored(plan, index)
    rows: GradientMatrix
    if plan.rows == "stream":
        rows = StreamedRows(*plan.face, plan.batches(samples=scored))
    else:
        rows = record_rows(*plan.face, plan.batches("gradients of the samples", scored))
    about: dict[str, object] = {} if index is None else {"candidates": len(index)}
    space = Space(rows, n, None, index, terms_of(plan, scored))
    source = "stream" if plan.rows == "stream" else "memory"
    return Gathered(source, space, lambda: _mean(rows, plan.run.theta)[0], warnings, about)


def _mean(rows: GradientMatrix, like: Tensor) -> Tensor:
    """The mean row, `[1, d]`."""
    return rows.sum(torch.full((1, rows.n), 1 / rows.n).to(like))
