"""The training as it was, step by step: its states by the optimiser's own rule, and its batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import TypeVar

import torch
from torch import Tensor

from fudlr.common.errors import DataError
from fudlr.common.progress import track
from fudlr.gradients.store import Recipe
from fudlr.gradients.store.reader import read_ahead
from fudlr.gradients.store.shards import Step
from fudlr.influence.unroll.adam import OptimiserStep, State
from fudlr.influence.unroll.training import Training

T = TypeVar("T")
ASTRAY = 1e-3
"""Distance from θ* beside the training's whole way beyond which it is another training's rows:
rounding, which Adam enlarges where gradients are nearly 0, stays a hundred times below."""
STATE_BYTES = 2**29
"""Of the states and means of all steps, up to which they are kept; else √T of the states, and made
again."""


@dataclass(frozen=True)
class Place:
    """The training before and after step `t`, from 0, and the step's mean gradient `[d]`."""

    t: int
    state: State
    after: State
    mean: Tensor


class Trajectory:
    """The states θ_0 … θ_T of a training, and what each step was made from.

    Args:
        training: Its steps.
        recipe: How its steps were made.
        rates: The optimiser's learning rate at each.
        before: Steps that Adam took before the start.
        start: The state at the start.
        end: θ* `[d]`.
        order: Of the flat vectors here, as places in those of `training`.
        window: How many batches `near` gives.
        noted: Steps before which the state is kept in any case.

    Attributes:
        states: All T + 1, where they are kept.
        noted: Those before the steps `noted`.

    Raises:
        DataError: The steps lead elsewhere than to θ*.
    """

    def __init__(
        self,
        training: Training,
        recipe: Recipe,
        rates: Tensor,
        *,
        before: int,
        start: State,
        end: Tensor,
        order: Tensor,
        window: int,
        noted: Iterable[int] = (),
    ) -> None:
        self.training, self.start, self.count = training, start, training.count
        self._optimisers = [
            OptimiserStep(recipe, t + 1 + before, rate, start.theta)
            for t, rate in enumerate(rates.tolist())
        ]
        self._order, self._window = order, window
        self._near: dict[int, Step] = {}
        self.states: list[State] | None = None
        self._means: list[Tensor] = []
        self.noted: dict[int, State] = {}
        self._check(end, set(noted))

    def optimiser(self, t: int) -> OptimiserStep:
        """How step `t` moves a state."""
        return self._optimisers[t]

    def mean(self, t: int) -> Tensor:
        """The gradient of step `t` in the order of `_order`."""
        if t < len(self._means):
            return self._means[t]
        return self.training.mean(t).index_select(0, self._order).to(self.start.theta)

    def near(self, t: int) -> Iterator[tuple[int, Step]]:
        """Step `t`, the last one that was given, and those on both sides of it."""
        first = min(max(t - self._window // 2, 0), self.count - self._window)
        wanted = range(first, first + self._window)
        for each in wanted:
            if each not in self._near:
                self._near[each] = self.training.step(each)
        for each in [each for each in self._near if each not in wanted]:
            del self._near[each]
        yield from ((each, self._near[each]) for each in wanted)

    def _read(self, steps: range) -> Iterator[Step]:
        """Steps in order, the next one read while one is in use."""
        self._near = {}
        if self._window == 1:
            for t, step in zip(steps, self._ahead(self.training.step, steps), strict=True):
                self._near = {t: step}
                yield step
            return
        for t in steps:
            if t not in self._near:
                self._near[t] = self.training.step(t)
            yield self._near[t]

    def _ahead(self, read: Callable[[int], T], steps: range) -> Iterator[T]:
        """What `read` gives of the steps, made ahead where that takes time."""
        calls = (partial(read, t) for t in steps)
        return (call() for call in calls) if self.training.kept else read_ahead(calls)

    def forwards(self, description: str) -> Iterator[tuple[Place, Step]]:
        """Every step, with what was before it."""
        state = self.start
        steps = range(self.count)
        for t, step in enumerate(track(self._read(steps), len(steps), description)):
            yield (place := self._place(t, state)), step
            state = place.after

    def backwards(self) -> Iterator[tuple[Place, Step]]:
        """Every step from the last on, with what was before and after it."""
        steps = range(self.count - 1, -1, -1)
        read = track(self._read(steps), len(steps), "influence through the training")
        between: list[Place] = []
        for t, step in zip(steps, read, strict=True):
            if not between:
                first = t // self._apart * self._apart
                state = self._marks[first // self._apart]
                for s in range(first, t + 1):
                    between.append(self._place(s, state))
                    state = between[-1].after
            yield between.pop(), step

    def _place(self, t: int, state: State) -> Place:
        mean = self.mean(t)
        return Place(t, state, self._after(t, state, mean), mean)

    def _after(self, t: int, state: State, mean: Tensor) -> State:
        if self.states is not None:
            return self.states[t + 1]
        return self.optimiser(t).move(state, mean)

    def _check(self, theta: Tensor, noted: set[int]) -> None:
        count = self.count
        state, states, means = self.start, [self.start], []
        # States that are not kept are made again from those √T steps apart.
        self._apart = isqrt(count) + 1
        self._marks: list[State] = []
        keeps = 4 * count * theta.numel() * theta.element_size() <= STATE_BYTES
        self.usual = torch.zeros_like(theta)  # v̂, over the steps
        for t, mean in enumerate(self._ahead(self.mean, range(count))):
            if t in noted:
                self.noted[t] = state
            if t % self._apart == 0:
                self._marks.append(state)
            state = self._after(t, state, mean)
            self.usual.add_(state.square, alpha=1 / (self.optimiser(t).correction * count))
            if keeps:
                states.append(state)
                means.append(mean)
        if keeps:
            self.states, self._means = states, means
        way = float((theta - self.start.theta).norm())
        off = float((state.theta - theta).norm())
        if not off <= ASTRAY * way:
            share = off / way if way else float("inf")
            raise DataError(
                "a training was to be repeated from its recorded steps",
                f"they end {off:.3g} from the adapter, {share:.1%} of the training's whole way",
                "Use the store that was recorded while this adapter trained; where it was, its "
                "optimiser or its gradients did more than was recorded, and the closed form is "
                "left (debias.update=closed_form)",
            )
