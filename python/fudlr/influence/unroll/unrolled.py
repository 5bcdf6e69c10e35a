"""A training repeated without some of its samples, from the sketched gradients that it left.

The parameters are where they were, θ_t; beside them goes the adapter that never saw the samples,
θ_t + δ_t, by the same batches, rates and optimiser. Its gradients are not computed: they are the
rows' answer to δ_t (see `response`), each step's mean gradient being exact. What the optimiser
makes of them is exact.

Rows are s_i = S g_i, and never lifted: a product with Sᵀ s_i is one of s_i with the projected
vector, and a sum of rows is lifted once. Parameters, δ and Adam's moments stay in d.

With nobody removed the training ends at θ* again, which is checked. To first order in the mask the
same recursion is linear, and its transpose, from the last step back, gives every sample's influence
on a metric by one pass over the rows. Transposed training: Maclaurin et al. 2015, arXiv 1502.03492;
for attribution: Bae et al. 2024, arXiv 2405.12186 (SOURCE), Ilyas and Engstrom 2025, arXiv
2504.16430 (MAGIC); that a LoRA training's own sketched rows can stand for its model is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import ceil
from typing import Self

import torch
from torch import Tensor

from fudlr.common.errors import NumericalError
from fudlr.common.parallel import Ranks, ranks
from fudlr.gradients.store import Recipe, Store
from fudlr.gradients.store.shards import Step
from fudlr.influence.unroll.adam import LinearStep, State
from fudlr.influence.unroll.arranged import ArrangedProjection
from fudlr.influence.unroll.exact import Exact, LeftOut, quarter, spans, unwatched
from fudlr.influence.unroll.response import (
    Response,
    arrange,
    group_layers,
    inverses,
    layer_table,
)
from fudlr.influence.unroll.training import StoredTraining, Training
from fudlr.influence.unroll.trajectory import Place, Trajectory
from fudlr_ext.ops import row_gram, row_sums

Masks = Tensor | Callable[[Tensor], Tensor]
"""m `[..., n]`, or what gives m `[k, b]` of samples by their places `[b]`, where n is large."""
WINDOW = 32
"""Most batches that a curvature is the mean of: each costs a pass over its rows."""
CHECKED = 16  # steps from one look at what the transpose makes of vectors to the next
GROWTH = 1e3
"""How much larger the transpose may make a vector on its way back. Where steps are stable it stays
about as long; at the edge of stability (Cohen et al. 2022, arXiv 2207.14484) the linear recursion
grows without bound, while the training itself turns aside."""


class Unrolled:
    """The training of one adapter, to be repeated without some of its samples.

    Args:
        training: Its steps.
        shapes: Of the adapter's matrices; see `Engine.shapes`.
        recipe: How its steps were made.
        rates: The optimiser's learning rate at each.
        samples: n, the training samples.
        start: θ₀ `[d]`.
        theta: θ* `[d]`.
        terms: T `[n]`, of how many terms each sample's loss is the mean; 1 each where None.
        moments: Adam's `[2, d]` at the start; zeros where None.
        before: Steps that Adam took before the start.

    Raises:
        DataError: The steps lead elsewhere than to θ*.
    """

    def __init__(
        self,
        training: Training,
        shapes: Mapping[str, tuple[int, int]],
        *,
        recipe: Recipe,
        rates: Tensor,
        samples: int,
        start: Tensor,
        theta: Tensor,
        terms: Tensor | None = None,
        moments: Tensor | None = None,
        before: int = 0,
    ) -> None:
        self.n, self.d = samples, theta.numel()
        # Within, flat vectors have another order, with layers of one shape side by side.
        self._order, self._layers = arrange(group_layers(shapes), self.d)
        self._back, self._table = self._order.argsort(), layer_table(self._layers)
        self._training = training
        self._projections: dict[int, ArrangedProjection | None] = {}
        start, self._end = start.cpu()[self._order], theta.cpu()[self._order]
        self._start = State.at(start)
        if moments is not None:
            self._start = State(start, *moments.cpu()[:, self._order])
        self._terms = None if terms is None else terms.cpu()
        # Where T is 1 the batch's own rows are its curvature. The square of a mean has T² products
        # of terms, of which T count: more batches average the others out (docs/method.md).
        mean = 1.0 if terms is None else float(terms.mean())
        self._window = min(WINDOW, ceil(mean) ** 2, training.count)
        self._responses: list[Response] = []
        self._weights: dict[int, Tensor] = {}
        self._path = Trajectory(
            training, recipe, rates, before=before, start=self._start, end=self._end,
            order=self._order, window=self._window, noted=map(quarter, spans(training.count)),
        )  # fmt: skip

    @classmethod
    def of(
        cls,
        store: Store,
        shapes: Mapping[str, tuple[int, int]],
        *,
        order: Tensor | None = None,
        theta: Tensor | None = None,
        terms: Tensor | None = None,
    ) -> Self:
        """The training in a store.

        Args:
            store: Of a whole training.
            shapes: See `Unrolled`.
            order: The training samples' ids `[n]`; the last epoch's, ascending, where None.
            theta: θ* `[d]`; where the recording ended where None.
            terms: See `Unrolled`.

        Raises:
            DataError: The store is of the last epoch alone, or its steps lead elsewhere.
            StoreError: It is damaged.
        """
        training, recipe = StoredTraining(store, order), store.manifest.recipe
        assert recipe is not None  # StoredTraining
        ends = store.training()
        return cls(
            training,
            shapes,
            recipe=recipe,
            rates=store.rates,
            samples=training.samples,
            start=ends["start"],
            theta=ends["end"] if theta is None else theta,
            terms=terms,
            moments=ends.get("moments"),
            before=int(ends["before"]) if "before" in ends else 0,
        )

    @unwatched
    def update(
        self, masks: Masks, stiffness: Tensor | float = 1.0, exact: Exact | None = None
    ) -> Tensor:
        """θ `[..., d]` without the samples of each of `masks` m `[..., n]`, 1 removed: 1 − m in the
        training loss. Several masks share every pass over the rows. Fisher's products are times
        `stiffness`, of all masks or of each `[k, 1]`; `exact` gives what sketches leave out."""
        of, shape = self._masks(masks)
        away = State(*(part.expand(shape.numel(), -1) for part in self._start))
        left = None if exact is None else self._left(exact, of)
        for place, step in self._path.forwards("unroll the training"):
            response, shifts = self._response(place), away.theta - place.state.theta
            gone = of(step.ids) * step.shares.to(shifts)
            kept = stiffness - stiffness / float(step.shares.sum()) * gone.sum(1, keepdim=True)
            seen = response.seen(shifts)
            totals = self._move(place.t, step, seen, gone, kept)
            totals += place.mean
            if left is not None:
                lost, curved = left.at(place.t, step.segment, seen)
                totals += kept * curved - lost
            whole = response.views(totals, shifts).add_(totals)
            away = self._path.optimiser(place.t).move(away, whole)
        ends = away.theta[:, self._back]
        return ends.view(*shape, self.d)

    @unwatched
    def tangent(self, masks: Masks) -> Tensor:
        """The change of θ to first order in `masks` `[k, n]`, `[k, d]`."""
        of, shape = self._masks(masks)
        zero = self._start.theta.new_zeros(shape.numel(), self.d)
        change = State(zero, zero, zero)
        for place, step in self._path.forwards("change of the training"):
            linear, response = self._linear(place), self._response(place)
            gone = of(step.ids) * step.shares.to(zero)
            gradient = self._move(place.t, step, change.theta, gone)
            gradient += response.views(place.mean, change.theta)
            change = linear.tangent(change, gradient)
        return change.theta[:, self._back]

    @unwatched
    def influence(self, vectors: Tensor) -> Tensor:
        """vᵀ ∂θ/∂m_i, `[n, k]`, for `vectors` `[k, d]`: the transpose of `tangent`."""
        out = torch.zeros(len(vectors), self.n, dtype=self._start.theta.dtype)
        for ids, products in self.influences(vectors):
            for line, each in zip(out, products.T, strict=True):
                line.index_add_(0, ids, each.contiguous())  # many columns take far longer
        ranks().sum(out)
        return out.T

    @torch.inference_mode()
    def influences(self, vectors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What each step, the last one first, adds to that: places `[b]` and products `[b, k]` of
        its samples, of several ranks of this one's. Nothing of size n is held."""
        vectors = vectors.to("cpu", self._start.theta.dtype)[:, self._order]
        here = ranks()
        # Each rank takes some of the vectors back, and multiplies its rows with all of them.
        split = Split(len(vectors), here) if len(vectors) >= here.size > 1 else None
        own = vectors[split.own] if split else vectors
        zero = torch.zeros_like(own)
        hangs = State(own, zero, zero)
        for place, step in self._path.backwards():
            gradient, hangs = self._linear(place).transposed(hangs)
            dots, sums = self._sums(place.t, gradient, split)
            yield step.ids[step.own], (dots * -step.shares[step.own].to(dots)[:, None]).to(own)
            curved = self._response(place).views(place.mean, gradient)
            curved.add_(self._lifted(sums, curved, split))
            hangs.theta.add_(curved)  # a tensor of the step's own
            if place.t % CHECKED == 0 and len(own):
                self._check_growth(place.t, own, hangs.theta)

    def _check_growth(self, t: int, vectors: Tensor, hangs: Tensor) -> None:
        """Raise where the transpose diverges."""
        grown = float((hangs.norm(dim=1) / vectors.norm(dim=1).clamp(min=1e-30)).max())
        if not grown <= GROWTH:
            raise NumericalError(
                "influences were to be found through the recorded training",
                f"what a sample of step {t + 1} of {self._training.count} does grows {grown:.1g} "
                "times until the end: the steps are unstable there, and no influence to first "
                "order stands for a retraining",
                "Train with a lower rate (train.learning_rate) or larger batches; of this "
                "training the closed form is left (debias.update=closed_form)",
            )

    def curvature(self, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """What the rows see of `shifts` δ `[k, d]` at θ* (see `response`), as far as their sketches
        keep it, u `[k, d]`; and uᵀ F u `[k]`, the mean of T_i (g_iᵀ u)² over the last epoch."""
        response = Response(self._layers, self._end, table=self._table)
        seen = response.seen(shifts.cpu()[:, self._order])
        last = self._training.step(self._training.count - 1).segment
        sketch = self._project(last, seen)
        total, count = torch.zeros(len(seen), dtype=torch.float64), 0
        for t in range(self._training.count - 1, -1, -1):
            step = self._training.step(t)
            if count >= self.n or step.segment != last:
                break
            weights = _beside(step.rows, self._counted(step.ids[step.own]))
            vectors = _beside(step.rows, sketch)
            dots, _ = row_gram(step.rows, vectors, weights, step.scales)
            total += weights.double() @ dots.double() ** 2
            count += len(step.ids)
        ranks().sum(total)
        return self._lift(last, sketch.to(seen))[:, self._back], total / count

    def _masks(self, masks: Masks) -> tuple[Callable[[Tensor], Tensor], torch.Size]:
        """m `[k, b]` of samples by their places, and the shape of k."""
        dtype = self._start.theta.dtype
        if not isinstance(masks, Tensor):
            some = masks(torch.empty(0, dtype=torch.int64))
            return lambda ids: masks(ids).to(dtype), some.shape[:-1]
        own = masks.to("cpu", dtype).reshape(-1, self.n)
        return lambda ids: own.index_select(1, ids), masks.shape[:-1]

    def _linear(self, place: Place) -> LinearStep:
        optimiser = self._path.optimiser(place.t)
        return optimiser.linear(place.state, place.mean, place.after, self._path.usual)

    def _response(self, place: Place) -> Response:
        if self._path.states is None:
            return Response(self._layers, place.state.theta, table=self._table)
        if not self._responses:
            thetas = [state.theta for state in self._path.states[:-1]]
            known = zip(*inverses(self._layers, torch.stack(thetas)), strict=True)
            self._responses = [
                Response(self._layers, *each, self._table)
                for each in zip(thetas, known, strict=True)
            ]
        return self._responses[place.t]

    def _move(
        self,
        t: int,
        step: Step,
        shifts: Tensor,
        gone: Tensor,
        kept: Tensor | float = 1.0,
    ) -> Tensor:
        """kept · mean T_j g_j g_jᵀ δ − Σ m_i u_i g_i, `[k, d]`, for shifts δ `[k, d]` and m_i u_i
        of the step's samples `[k, b]`, `gone`."""
        _, sums = self._sums(t, shifts)
        sums = {segment: total * kept for segment, total in sums.items()}
        sums[step.segment] -= self._gone(step, gone)
        return self._lifted(sums, shifts)

    def _gone(self, step: Step, gone: Tensor) -> Tensor:
        """Σ m_i u_i S g_i `[k, p]` for m_i u_i `[k, b]`; of several ranks, this one's part."""
        gone = gone[:, step.own]
        some = gone.any(0).nonzero()[:, 0]
        # Indexing takes numbers one by one; this takes rows.
        scales = None if step.scales is None else step.scales.index_select(0, some)
        rows = step.rows.index_select(0, some)
        return row_sums(rows, _beside(rows, gone.index_select(1, some)), scales)

    def _left(self, exact: Exact, masks: Callable[[Tensor], Tensor]) -> LeftOut:
        thetas = {t: state.theta[self._back] for t, state in self._path.noted.items()}
        return LeftOut(
            self._training, exact, masks,
            n=self.n, thetas=thetas, order=self._order, outside=self._outside,
        )  # fmt: skip

    def _outside(self, segment: int, vectors: Tensor) -> Tensor:
        """v − Sᵀ S v `[k, d]`, for v `[k, d]`."""
        return vectors - self._lift(segment, self._project(segment, vectors))

    def _sums(
        self, t: int, vectors: Tensor, split: Split | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """g_iᵀ v `[b, k]` of the rows of step `t`, and Σ u_j T_j S g_j g_jᵀ v `[k, p]`, the mean of
        that over the window, by the segments of its steps, for `vectors` `[k, d]`, or those of all
        ranks."""
        dots: Tensor | None = None
        seen: dict[int, Tensor] = {}
        sums: dict[int, Tensor] = {}
        for at, near in self._path.near(t):
            if near.segment not in seen:
                sketches = self._project(near.segment, vectors)
                seen[near.segment] = _beside(
                    near.rows, split.of_all(sketches) if split else sketches
                )
            weights = self._weights.get(at)
            if weights is None:
                counted = near.shares[near.own].double() * self._counted(near.ids[near.own])
                weights = _beside(near.rows, counted / self._window)
                if self._training.kept:
                    self._weights[at] = weights
            found, products = row_gram(near.rows, seen[near.segment], weights, near.scales)
            dots = found if at == t else dots
            before = sums.get(near.segment)
            sums[near.segment] = products if before is None else before + products
        assert dots is not None  # the step is in its own window
        return dots, sums

    def _counted(self, ids: Tensor) -> Tensor:
        """T of some samples `[b]`, in float64."""
        if self._terms is None:
            return torch.ones(len(ids), dtype=torch.float64)
        return self._terms[ids].double()

    def _lifted(self, sums: dict[int, Tensor], like: Tensor, split: Split | None = None) -> Tensor:
        """Σ Sᵀ s `[k, d]` of sketches s `[k, p]` by their segments, all ranks' together; of this
        rank's own k where they are split."""
        ranks().sum(*sums.values())
        if split:
            sums = {segment: total[split.own] for segment, total in sums.items()}
        parts = [self._lift(segment, total.to(like)) for segment, total in sums.items()]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def _project(self, segment: int, vectors: Tensor) -> Tensor:
        projection = self._projection(segment)
        return vectors[:, self._back] if projection is None else projection.project(vectors)

    def _lift(self, segment: int, sketches: Tensor) -> Tensor:
        projection = self._projection(segment)
        return sketches[:, self._order] if projection is None else projection.lift(sketches)

    def _projection(self, segment: int) -> ArrangedProjection | None:
        if segment not in self._projections:
            found = self._training.projection(segment)
            dtype = self._start.theta.dtype
            self._projections[segment] = (
                None if found is None else ArrangedProjection(found, self._back, dtype)
            )
        return self._projections[segment]


class Split:
    """Which of `count` vectors are this rank's own."""

    def __init__(self, count: int, here: Ranks) -> None:
        self.own, self._count, self._here = here.part(count), count, here

    def of_all(self, own: Tensor) -> Tensor:
        """Every rank's `[count, p]`, of this one's `[k, p]`."""
        out = own.new_zeros(self._count, own.shape[1])
        out[self.own] = own
        self._here.sum(out)
        return out


def _beside(rows: Tensor, vectors: Tensor) -> Tensor:
    """`vectors` in the type that products with `rows` take."""
    return vectors.to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
