"""The training samples' gradients for a request: from a store, or taken anew.

A store answers without the training data: rows and curvature are its sketches. Without one, whole
gradients are computed, of all samples or of candidates, and kept, or computed again for each
product. A trajectory answers for the whole training, and no curvature is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fudlr.common.batches import Batches
from fudlr.common.errors import UsageError
from fudlr.data import Samples
from fudlr.gradients.store import (
    CentredRows,
    GradientRows,
    Space,
    Store,
    StoredRows,
    StoreError,
    StreamedRows,
    record_rows,
    sketch_space,
)
from fudlr.gradients.store.commands import stale_text
from fudlr.influence.candidates import Candidacy, choose_candidates
from fudlr.influence.curvature import EmpiricalFisher, Parts
from fudlr.influence.solvers import Solve, make_solver, sampled_preconditioner
from fudlr.influence.unroll import Replay
from fudlr.influence.update import Update, removal_update
from fudlr.pipeline.job import Job, adam_of
from fudlr.pipeline.removal import Removal, Trained
from fudlr.pipeline.replayed import as_it_is, replay_of, replayed
from fudlr.pipeline.request import choose_damping, stationarity
from fudlr.pipeline.trajectory_rows import TrajectoryRows

SKETCH_STEPS = 20
"""Largest number of steps in sketch space: a backstop, since the tolerance is to end a solve."""
SKETCH_TOLERANCE = 0.01
"""Relative residual: small beside what the sketches themselves take from influences, which the
store's audit says."""
LOADED_BYTES = 2**30
"""Rows of a store up to this size in float32 are kept in memory; larger ones are streamed."""
PRECONDITIONER_ROWS = 512
"""Rows m that the preconditioner is made from: more save steps of 4 n p operations each, and cost
m² p once and 4 m p a step."""


@dataclass(frozen=True)
class Evidence:
    """Rows of gradients, and H⁻¹ in their space.

    Attributes:
        source: `store`, `memory`, `stream` or `trajectory`.
        space: The rows and the way to the adapter's parameters.
        damping: Of H; 0 where none is asked for.
        solve: H⁻¹ in that space, for scores and update alike.
        remove: Takes the samples of a mask `[n]` out of θ*.
        warnings: Why it is not what was asked for, if so.
        about: Facts for the summary.
    """

    source: str
    space: Space
    damping: float
    solve: Solve
    remove: Callable[[Tensor], Update]
    warnings: list[str] = field(default_factory=list)
    about: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class _Found:
    """Rows, and the mean gradient that the damping is chosen by, before any solver."""

    source: str
    space: Space
    slope: Callable[[], Tensor]
    warnings: list[str]
    about: dict[str, object]
    replay: Replay | None = None


def gather(job: Job) -> _Found:
    """The rows that the options ask for; a store's are opened, others computed.

    Raises:
        UsageError: A store was asked for and there is none, or cannot answer these options.
        StoreError: The store is damaged, or belongs to another adapter.
    """
    warnings = list(job.run.notes)
    replay = replay_of(job.run) if job.config.update == "replay" else None
    if replay is not None and job.config.rows in ("auto", "trajectory"):
        space = Space(TrajectoryRows(replay), replay.n)
        return _Found("trajectory", space, replay.slope, warnings, {}, replay)
    store = _open_store(job, warnings)
    if store is not None:
        return _from_store(job, store, warnings)
    return replace(_from_model(job, warnings), replay=replay)


def solvers(job: Job, found: _Found) -> Evidence:
    """The damping and H⁻¹ for rows that were gathered."""
    run, config = job.run, job.config
    l2, mean = run.config.train.l2, found.slope()
    face = (l2, mean, run.theta, run.start)
    about = {"rows": found.source, "slope_left": stationarity(*face), **found.about}
    space = found.space
    replay = None if found.replay is None else replayed(run, found.replay)
    if found.source == "trajectory":
        assert replay is not None  # gather
        return Evidence(found.source, space, 0.0, as_it_is, replay, found.warnings, about)
    whole: float | Tensor
    if config.metric == "adam":
        adam, damping = adam_of(run), config.damping or l2
        whole = adam.damping(damping)
        pull = adam.pull(mean + l2 * (run.theta - run.start))
        space = replace(space, rows=CentredRows(space.rows, pull))
        about |= {"metric": config.metric, "mean_damping": float(whole.mean())}
    else:
        damping = whole = config.damping or choose_damping(*face)
    if found.source == "store":
        solve = sketch_solver(space, damping, config.max_steps)
        remove = _one_step(job, space, solve)
    else:
        removal = _removal(job, space, whole)
        solve = removal.solve
        remove = removal.update if space.index is None else _one_step(job, space, solve)
    return Evidence(found.source, space, damping, solve, replay or remove, found.warnings, about)


def _one_step(job: Job, space: Space, solve: Solve) -> Callable[[Tensor], Update]:
    """θ* + (1/n) H⁻¹ Gᵀ m where rows are sketches, or of candidates alone."""

    def remove(mask: Tensor) -> Update:
        lift = None if space.projection is None else space.lift
        rows, theta = space.rows, job.run.theta
        return removal_update(theta, rows, space.of_rows(mask), solve, n=space.total, lift=lift)

    return remove


def _open_store(job: Job, warnings: list[str]) -> Store | None:
    """The store to answer from; None where none is wanted or, in `auto`, none can."""
    named = job.config.store
    wanted = "store" if named else job.config.rows
    if wanted not in ("auto", "store"):
        return None
    unfit = _unfit(job)
    if unfit and wanted == "auto":
        return None
    asked = "a request was to be answered from a store (debias.rows: store)"
    if unfit:
        raise UsageError(asked, unfit, "Leave that option out, or set debias.rows to memory")
    try:
        store = job.run.store(Path(named)) if named else job.run.store()
        if store is not None:
            store.places(torch.from_numpy(job.run.split.train.ids))
    except StoreError as error:
        if wanted == "store":
            raise
        warnings.append(
            f"The run's store was not used: {error.found}. All gradients were computed anew. "
            "Record again with `fudlr record`, or set debias.rows to memory."
        )
        return None
    if store is None and wanted == "store":
        raise UsageError(asked, "the run has none", "Make one with `fudlr record`")
    return store


def _unfit(job: Job) -> str:
    """Why sketches cannot answer what is asked; empty where they can."""
    config = job.config
    if config.curvature != "empirical_fisher":
        return f"the curvature {config.curvature} is a product through the model, not with rows"
    if config.update != "one_step" or config.slope != "hold":
        return f"the update {config.update} (slope {config.slope}) needs whole gradients"
    if config.solver not in ("auto", "cg"):
        return f"the solver {config.solver} is not for sketches"
    if config.metric != "identity":
        return f"the metric {config.metric} is the adapter's own, which sketches mix"
    if config.candidates != "all":
        return f"candidates are {config.candidates}, and are for requests without a store"
    return ""


def _from_store(job: Job, store: Store, warnings: list[str]) -> _Found:
    projection = store.projection()
    if projection is None:
        raise StoreError(
            f"the store {store.folder} was to answer a request",
            "it does not say how its rows were projected",
            "Record it with `fudlr record`",
        )
    rows = StoredRows(store, torch.from_numpy(job.run.split.train.ids))
    small = 4 * rows.n * rows.d <= LOADED_BYTES
    space = sketch_space(rows.load() if small else rows, projection)
    space = replace(space, terms=terms_of(job, job.run.split.train))
    facts = store.facts()
    about: dict[str, object] = {
        "kept": store.kept,
        "dimension": store.dim,
        "dtype": store.spec.dtype,
    }
    audit = store.audit()
    if audit is not None:
        about["audit"] = audit
    if store.spec.stale is not None:
        about["stale"] = asdict(store.spec.stale)
        warnings.append(
            f"The store's rows are stale in part: {stale_text(store)}. Influences and update are "
            "off to that extent; `fudlr record --refresh 1` records all again."
        )
    return _Found(
        "store",
        space,
        lambda: _mean_sketch(space) if facts is None else facts.mean_gradient.to(job.run.theta),
        warnings,
        about,
    )


def _mean_sketch(space: Space) -> Tensor:
    """What is left of the mean gradient in the sketches, where the whole was not kept."""
    weights = torch.full((1, space.rows.n), 1 / space.rows.n)
    return space.lift(space.rows.sum(weights))[0]


def _from_model(job: Job, warnings: list[str]) -> _Found:
    run = job.run
    samples = run.split.train
    config = job.config
    index = choose_candidates(
        config.candidates, config.candidate_share, config.seed, _candidacy(job)
    )
    if index is not None and config.update != "one_step":
        raise UsageError(
            f"the update {config.update} was asked for with candidates {config.candidates}",
            "only candidates' gradients are taken, and it needs those of all samples",
            "Set debias.update to one_step, or debias.candidates to all",
        )
    scored = samples if index is None else samples.take(index.numpy())
    rows: GradientRows
    source = "stream" if config.rows == "stream" else "memory"
    if source == "stream":
        rows = StreamedRows(*job.face, job.batches(samples=scored))
    else:
        rows = record_rows(*job.face, job.batches("gradients of the samples", scored))
    about: dict[str, object] = {}
    if index is not None:
        about["candidates"] = {"strategy": config.candidates, "samples": len(index)}

    def slope() -> Tensor:
        return rows.sum(torch.full((1, rows.n), 1 / rows.n).to(run.theta))[0]

    space = Space(rows, len(samples), None, index, terms_of(job, scored))
    return _Found(source, space, slope, warnings, about)


def terms_of(job: Job, samples: Samples) -> Tensor | None:
    """T [n], of how many terms each loss is the mean; None where every one is of one."""
    terms = job.run.recommender.terms(samples)
    return None if bool((terms == 1).all()) else terms.to(job.run.theta)


def _candidacy(job: Job) -> Candidacy:
    run, samples = job.run, job.run.split.train
    of_user = torch.full((run.interactions.n_users,), -1, dtype=torch.int64)
    of_user[torch.from_numpy(job.valid.samples.user)] = job.valid.side.user_group
    return Candidacy(
        popularity=torch.from_numpy(run.split.popularity[samples.target]),
        groups=of_user[torch.from_numpy(samples.user)],
        losses=lambda: run.recommender.losses(samples, job.config.batch),
    )


def _removal(job: Job, space: Space, damping: float | Tensor) -> Removal:
    """Curvature, solver and update rule of the options, with whole gradients."""
    run, samples = job.run, job.run.split.train
    scored = samples if space.index is None else samples.take(space.index.numpy())
    engine, forward, loss = job.face
    parts = Parts(
        engine=engine,
        forward=forward,
        loss=loss,
        batches=job.batches(samples=scored),
        rows=space.rows,
        terms=space.terms,
        draw=getattr(run.recommender, "draw_labels", None),
        seed=job.config.seed,
    )
    trained = Trained(run.theta, run.start, run.config.train.l2, damping)

    def batches_of(index: Tensor) -> Batches:
        return job.batches(samples=scored.take(index.numpy()))

    return Removal(job.config, parts, space.rows, batches_of, trained)


def sketch_solver(space: Space, damping: float, max_steps: int | None = None) -> Solve:
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
        max_steps=max_steps or SKETCH_STEPS,
        tolerance=SKETCH_TOLERANCE,
        preconditioner=sampled_preconditioner(part, damping),
    )
