"""A training gone again without some of its samples, in the rows that it left.

The parameters are where they were, θ_t; beside them goes the adapter that never saw the samples,
θ_t + δ_t, by the same batches, rates and Adam's two moments. Its gradients are not computed: they
are the rows' answer to δ_t (see `trajectory.response`). What Adam makes of them is exact.

With nobody removed the way ends at θ* again, which is checked. To first order in the mask the same
recursion is linear, and its transpose, from the last step back, gives every sample's influence on
a metric by one pass over the rows. Transposed training: Maclaurin et al. 2015, arXiv 1502.03492;
for attribution: Bae et al. 2024, arXiv 2405.12186 (SOURCE), Ilyas and Engstrom 2025, arXiv
2504.16430 (MAGIC); that a LoRA training's own rows can stand for its model is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isqrt

import torch
from torch import Tensor

from fudlr.common.errors import DataError
from fudlr.common.progress import track
from fudlr.gradients.steps import Step, Steps
from fudlr.influence.unroll.adam import AdamStep, Moments
from fudlr.influence.unroll.response import Response, Terms, pairs

WINDOW = 32
"""Most batches that a curvature is the mean of: each costs a pass over its rows."""
ASTRAY = 1e-3
"""Distance from θ* beside the training's whole way beyond which it is another training's rows:
rounding, which Adam enlarges where gradients are nearly 0, stays a hundred times below."""


@dataclass(frozen=True)
class _At:
    """The training before step `t`, from 1."""

    t: int
    theta: Tensor
    moments: Moments


class Replay:
    """The training of one adapter, to be gone again.

    Args:
        steps: Its batches.
        shapes: Of the adapter's matrices; see `Engine.shapes`.
        rates: Adam's learning rate at each.
        l2: λ.
        samples: n, the training samples.
        start, theta: θ₀ and θ* `[d]`.
        terms: T `[n]`, of how many terms each sample's loss is the mean; 1 each where None.

    Raises:
        DataError: The batches lead elsewhere than to θ*.
    """

    def __init__(
        self,
        steps: Steps,
        shapes: Mapping[str, tuple[int, int]],
        *,
        rates: Sequence[float],
        l2: float,
        samples: int,
        start: Tensor,
        theta: Tensor,
        terms: Tensor | None = None,
    ) -> None:
        self.n, self.d = samples, theta.numel()
        self._steps, self._layers = steps, pairs(shapes)
        self._start, self._l2, self._rates = start.cpu(), l2, rates
        self._terms = torch.ones(samples) if terms is None else terms.cpu()
        # Where T is 1 the batch's own rows are its curvature. The square of a mean has T² products
        # of terms, of which T count: more batches average the others out (docs/method.md).
        self._window = min(WINDOW, ceil(float(self._terms.mean())) ** 2, len(steps))
        self._check(theta.cpu())

    def update(self, mask: Tensor) -> Tensor:
        """θ without the samples of `mask` m `[n]`, 1 removed, `[d]`: 1 − m in the training loss."""
        weights = 1 - mask.to(self._start)
        here = self._begin()
        away = self._begin()
        for step in self._forwards("train again without"):
            weight = weights[step.samples]
            shift = away.theta - here.theta
            response, near = Response(self._layers, here.theta), self._near(here, step)
            found = response.gradient(step.rows, weight, shift, near)
            # Of rounded rows too the reference is exact, so that nobody removed is nothing done.
            found += step.slope - _mean(step.rows)
            away = self._next(away, found)
            here = self._next(here, step.slope)
        return away.theta.to(mask.device)

    def tangent(self, masks: Tensor) -> Tensor:
        """The change of θ to first order in `masks` `[k, n]`, `[k, d]`."""
        device, masks = masks.device, masks.to(self._start)
        shift = masks.new_zeros(len(masks), self.d)
        moments = Moments.zeros(shift)
        here = self._begin()
        for step in self._forwards("change of the training"):
            adam, after = self._adam(here, step.slope)
            removed = masks[:, step.samples] @ step.rows.to(masks) / len(step.rows)
            change = self._curvature(here, step, shift) - removed
            moments, moved = adam.tangent(moments, change, after.moments)
            shift = shift + moved
            here = after
        return shift.to(device)

    def influence(self, vectors: Tensor) -> Tensor:
        """vᵀ ∂θ/∂m_i, `[n, k]`, for `vectors` `[k, d]`: the transpose of `tangent`."""
        device, vectors = vectors.device, vectors.to(self._start)
        out = vectors.new_zeros(self.n, len(vectors))
        pull, moments = vectors, Moments.zeros(vectors)
        for here, step in track(self._back(), len(self._steps), "influence through the training"):
            adam, after = self._adam(here, step.slope)
            change, moments = adam.transposed(moments, pull, after.moments)
            out.index_add_(0, step.samples, -(step.rows.to(change) @ change.T) / len(step.rows))
            pull = pull + self._curvature(here, step, change)
        return out.to(device)

    def slope(self) -> Tensor:
        """The mean gradient of the last epoch `[d]`, each sample's where the parameters were."""
        total, count = torch.zeros_like(self._start), 0
        for t in range(len(self._steps), 0, -1):
            step = self._steps.read(t)
            total += step.slope * len(step.samples)
            count += len(step.samples)
            if count >= self.n:
                break
        return total / count

    def _curvature(self, here: _At, step: Step, vectors: Tensor) -> Tensor:
        response, near = Response(self._layers, here.theta), self._near(here, step)
        found = response.curvature(step.slope.to(vectors), vectors, near)
        return found + self._l2 * vectors

    def _near(self, here: _At, step: Step) -> Iterator[Terms]:
        """The batch and those on both sides of it, one at a time in memory."""
        first = min(max(here.t - self._window // 2, 1), len(self._steps) - self._window + 1)
        for t in range(first, first + self._window):
            each = step if t == here.t else self._steps.read(t)
            yield Terms(each.rows, self._terms[each.samples])

    def _begin(self) -> _At:
        return _At(1, self._start, Moments.zeros(self._start))

    def _adam(self, here: _At, slope: Tensor) -> tuple[AdamStep, _At]:
        """Step t and where it leads, `slope` being the data's part of its gradient."""
        gradient = slope + self._l2 * (here.theta - self._start)
        adam = AdamStep(here.t, self._rates[here.t - 1], gradient)
        moments, moved = adam.move(here.moments)
        return adam, _At(here.t + 1, here.theta + moved, moments)

    def _next(self, here: _At, slope: Tensor) -> _At:
        return self._adam(here, slope)[1]

    def _back(self) -> Iterator[tuple[_At, Step]]:
        """Every step and what was before it, from the last on; √T states are held at a time."""
        count = len(self._steps)
        size = isqrt(count) + 1
        marks = []
        here = self._begin()
        for t in range(1, count + 1):
            if (t - 1) % size == 0:
                marks.append(here)
            here = self._next(here, self._steps.slope(t))
        for mark in reversed(marks):
            held = [mark]
            for t in range(mark.t, min(mark.t + size, count + 1) - 1):
                held.append(self._next(held[-1], self._steps.slope(t)))
            for at in reversed(held):
                yield at, self._steps.read(at.t)

    def _forwards(self, description: str) -> Iterable[Step]:
        return track(self._steps, len(self._steps), description)

    def _check(self, theta: Tensor) -> None:
        here = self._begin()
        for t in range(1, len(self._steps) + 1):
            here = self._next(here, self._steps.slope(t))
        off, way = float((here.theta - theta).norm()), float((theta - self._start).norm())
        if not off <= ASTRAY * way:
            raise DataError(
                "a training was to be gone again in the batches that it kept",
                f"they end {off:.3g} from the adapter, {off / way if way else float('inf'):.1%} of "
                "the training's whole way",
                "Use the run's own adapter, and the data, options and versions it was trained with",
            )


def _mean(rows: Tensor) -> Tensor:
    return rows.to(torch.float32 if rows.dtype == torch.bfloat16 else rows.dtype).mean(0)
