"""One step of Adam or AdamW, what it does to a small change of its gradient, and the transpose.

    q = G + l2 (θ − θ₀),   g = min(1, clip / (‖q‖ + 10⁻⁶)) q   (+ decay·θ in Adam)
    m' = β₁ m + (1 − β₁) g,   v' = β₂ v + (1 − β₂) g²,
    θ' = (1 − η·decay) θ [AdamW] − η m̂ / (√v̂ + ε),   m̂ = m' / (1 − β₁ᵗ),   v̂ = v' / (1 − β₂ᵗ)

(Kingma and Ba 2015, arXiv 1412.6980; Loshchilov and Hutter 2019, arXiv 1711.05101; clipping as
`torch.nn.utils.clip_grad_norm_`), as PyTorch computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from fudlr.gradients.store import Recipe
from fudlr_ext.ops.unroll import adam_move, adam_tangent, adam_transposed

SMALL = 0.1
"""Beside its usual size, the least √v̂ at which a step is linear. A step hardly depends on the
gradient's size but on its sign: where √v̂ is next to 0 by chance, the derivative of η m̂ / √v̂ is far
above what any removal does, and rounding decides it. Without a tenth of the samples a gradient
changes by some tenth of its usual size, so that no smaller √v̂ counts."""


class State(NamedTuple):
    """Parameters and Adam's running means of gradients and of their squares `[d]`; or changes of
    them, or what depends on them, `[k, d]`."""

    theta: Tensor
    mean: Tensor
    square: Tensor

    @classmethod
    def at(cls, theta: Tensor) -> State:
        """Before the first step."""
        return cls(theta, torch.zeros_like(theta), torch.zeros_like(theta))


@dataclass(frozen=True)
class OptimiserStep:
    """Step t of a training.

    Attributes:
        recipe: How steps are made.
        t: From 1, as Adam counts.
        rate: η.
        start: θ₀ `[d]`.
    """

    recipe: Recipe
    t: int
    rate: float
    start: Tensor

    def move(self, before: State, gradient: Tensor) -> State:
        """The state after the step, G being `gradient` `[d]`; or of k states, `[k, d]`."""
        return State(*adam_move(*before, gradient, self.start, self.options))

    def linear(
        self, before: State, gradient: Tensor, after: State, usual: Tensor | float = 0.0
    ) -> LinearStep:
        """The step's derivative, for `gradient` `[d]` leading from `before` to `after`; `usual`
        is what v̂ `[d]` is over the training, see `SMALL`."""
        square = after.square.clamp(min=SMALL**2 * self.correction * usual)
        return LinearStep((before.theta, after.mean, square, gradient, self.start, self.options))

    @property
    def correction(self) -> float:
        """1 − β₂ᵗ: v / v̂."""
        return 1 - float(self.recipe.betas[1] ** self.t)

    @cached_property
    def options(self) -> Tensor:
        """As the ops take them."""
        recipe, (b1, b2) = self.recipe, self.recipe.betas
        decay, decoupled = recipe.weight_decay, recipe.optimiser == "AdamW"
        corrections = (1 - b1**self.t, self.correction)
        coupled, kept = (0.0, 1 - self.rate * decay) if decoupled else (decay, 1.0)
        numbers = (self.rate, b1, b2, recipe.eps, *corrections, recipe.l2, recipe.clip or 0.0)
        return torch.tensor((*numbers, coupled, kept), dtype=torch.float64)


@dataclass(frozen=True)
class LinearStep:
    """The derivative of one step, at what the ops take for its place in the training."""

    place: tuple[Tensor, ...]

    def tangent(self, before: State, change: Tensor) -> State:
        """What small changes of the state `before` and of G, `change`, make of the state after,
        all `[k, d]`."""
        return State(*adam_tangent(*before, change, *self.place))

    def transposed(self, later: State) -> tuple[Tensor, State]:
        """The transpose of `tangent`: what depends on G and the state before, given what does on
        the state after, all `[k, d]`."""
        change, *earlier = adam_transposed(*later, *self.place)
        return change, State(*earlier)
