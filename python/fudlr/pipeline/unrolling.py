"""The run's training repeated without some samples, by the rows that it left and the model's own
curvature where that leads.

    θ(m; c)   the unrolled training, its Fisher products times c  (`influence.unroll`)
    c = (uᵀ GGN u) / (uᵀ F u),   u = what the rows see of θ(m; 1) − θ*

and u as far as the rows' sketches keep it. Fisher's matrix F of the labels and the Gauss-Newton
matrix agree along the shifts of random removals. A mask is chosen by the influence, in which F's
inverse is: it leads where F has too little curvature, and the shift is too long. One product of the
model's over some training samples says by how much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr.common.parallel import ranks
from fudlr.gradients.store import Store
from fudlr.influence.unroll import Exact, Unrolled
from fudlr.pipeline.plan import Plan, cannot_unroll, why_not_unrolled
from fudlr.run import Run
from fudlr_ext import EngineError

TOGETHER = 2**26
"""Numbers of adapters that are unrolled at a time: of each, Adam's moments and as much again."""
PROBED = 512
"""Training samples over which the model's curvature is measured."""
SHIFTS = 4
"""Masks of a call whose shifts it is measured along; the others take the same ratio."""


@dataclass(frozen=True)
class Retrained:
    """The training repeated without some samples.

    Attributes:
        shifts: From θ*, `[k, d]`.
        stiffness: The ratio c that they were made with.
        bend: How much steeper the loss becomes along the first of them, times what the update
            took for granted; None where c was given.
        warnings: What to say of it.
    """

    shifts: Tensor
    stiffness: float
    bend: float | None = None
    warnings: list[str] = field(default_factory=list)


def retrained(
    run: Run,
    unrolled: Unrolled,
    masks: Tensor,
    exact: Exact | None = None,
    stiffness: float | None = None,
) -> Retrained:
    """The training repeated without the samples of each of `masks` `[k, n]`, all of one request,
    with `exact` gradients or their sketches alone; the model holds θ* before and after. The former
    are of samples that were named, along whose shifts both curvatures agree. `stiffness` is c where
    another mask of the request has told it."""
    some = masks[torch.linspace(0, len(masks) - 1, min(SHIFTS, len(masks))).long()]
    some = some[some.any(1)]
    ratio, said = stiffness or 1.0, list[str]()
    asked = len(some) and exact is None and stiffness is None
    if asked:
        ratio, said = _stiffness(run, unrolled, unrolled.update(some).to(run.theta) - run.theta)
    most = max(1, TOGETHER // run.theta.numel())
    ends = torch.cat([unrolled.update(each, ratio, exact) for each in masks.split(most)])
    shifts = ends.to(run.theta) - run.theta
    bend = _bend(run, unrolled, shifts[masks.any(1)][0], ratio) if asked else None
    run.engine.load(run.theta)
    return Retrained(shifts, ratio, bend, said)


def _bend(run: Run, unrolled: Unrolled, shift: Tensor, ratio: float) -> float | None:
    """⟨∇L(θ* + δ) − ∇L(θ*), δ⟩ over c uᵀ F u, for δ `shift` `[d]`: 1 where the loss is as quadratic
    as the update has it; None where the rows see nothing of δ."""
    steeper = _slope(run, run.theta + shift, shift) - _slope(run, run.theta, shift)
    taken = ratio * float(unrolled.curvature(shift[None])[1])
    return steeper / taken if taken else None


def _stiffness(run: Run, unrolled: Unrolled, shifts: Tensor) -> tuple[float, list[str]]:
    """c along `shifts` `[k, d]` together; 1 where the rows see nothing of them, and, with the
    reason, where the model does not say."""
    seen, each = unrolled.curvature(shifts)
    fisher = float(each.sum())
    if not fisher:
        return 1.0, []
    try:
        model = _gauss_newton(run, seen.to(run.theta))
        reason = f"it is {model:.3g} along the update"
    except (EngineError, RuntimeError) as error:  # operations without a second derivative too
        model, reason = 0.0, str(error).splitlines()[0]
    ratio = model / fisher
    if 0 < ratio < float("inf"):
        return ratio, []
    return 1.0, [
        f"The model's own curvature could not be used ({reason}); the recorded gradients' stands "
        "alone, and the update may be too long (docs/method.md)."
    ]


def _gauss_newton(run: Run, vectors: Tensor) -> float:
    """The mean of Σ_k v_kᵀ GGN v_k for `vectors` `[k, d]`."""
    total, count = 0.0, 0
    for size, batch in _probes(run):
        face = (run.recommender.forward, run.recommender.loss, batch)
        total += float((run.engine.ggn_vp(*face, vectors).to(vectors) * vectors).sum()) * size
        count += size
    return _mean(total, count)


def _slope(run: Run, theta: Tensor, along: Tensor) -> float:
    """⟨∇L(θ), v⟩ for `along` v `[d]`."""
    run.engine.load(theta)
    total, count = 0.0, 0
    for size, batch in _probes(run):
        face = (run.recommender.forward, run.recommender.loss, batch)
        total += float(run.engine.grad_sum(*face, torch.ones(size)).to(along) @ along)
        count += size
    return _mean(total, count)


def _mean(total: float, count: int) -> float:
    """Of all ranks' samples."""
    found = torch.tensor([total, count], dtype=torch.float64)
    ranks().sum(found)
    return float(found[0] / found[1])


def _probes(run: Run) -> Iterator[tuple[int, Any]]:
    """Training samples at equal distances, in batches, with how many are in each; of several ranks
    this one's share."""
    samples = run.split.train
    index = torch.linspace(0, len(samples) - 1, min(PROBED, len(samples))).long()
    parts = index[ranks().part(len(index))].split(run.config.train.batch)
    return zip(map(len, parts), run.recommender.parts(samples, parts), strict=True)


def taken_again(plan: Plan) -> Exact:
    """Gradients of the training samples at other parameters."""
    samples, recommender = plan.run.split.train, plan.run.recommender
    engine, forward, loss = plan.face

    def at(theta: Tensor, index: Tensor, *given: Tensor) -> tuple[Any, list[Tensor]]:
        engine.load(theta.clone())
        batch = recommender.batch(samples.take(index.numpy()))
        return batch, [each.to(engine.device, copy=True) for each in given]

    def sums(theta: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        with torch.inference_mode(mode=False):  # which nothing could go back through
            batch, (own,) = at(theta, index, weights)
            return engine.grad_sum(forward, loss, batch, own).to(theta)

    def products(theta: Tensor, index: Tensor, vectors: Tensor) -> Tensor:
        with torch.inference_mode(mode=False):
            terms = recommender.terms(samples.take(index.numpy())).to(vectors)
            batch, (own, weights) = at(theta, index, vectors, terms)
            return engine.fisher_vp(forward, loss, batch, own, weights).to(theta)

    return Exact(sums, products)


def unrolled_run(run: Run, named: str | None = None) -> tuple[Store, Unrolled]:
    """The run's training, to be repeated, and the store that it is in: its own or the one `named`.

    Raises:
        UsageError: There is none.
        DataError: The store's steps do not lead to the run's adapter.
        StoreError: The store is damaged, or of another run.
    """
    reason = why_not_unrolled(run, named)
    store = None if reason else named_store(run, named)
    if store is None:
        raise cannot_unroll(reason)
    samples = run.split.train
    unrolled = Unrolled.of(
        store,
        run.engine.shapes,
        order=torch.from_numpy(samples.ids),
        theta=run.theta,
        terms=run.recommender.terms(samples),
    )
    return store, unrolled


def named_store(run: Run, named: str | None) -> Store | None:
    """The run's own store, or the one `named`."""
    return run.store(Path(named)) if named else run.store()
