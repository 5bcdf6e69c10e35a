"""One step of Adam or AdamW, what it does to a small change of its gradient, and the transpose.

    q = G + l2 (θ − θ₀),   g = min(1, clip / (‖q‖ + 10⁻⁶)) q   (+ decay·θ in Adam)
    m' = β₁ m + (1 − β₁) g,   v' = β₂ v + (1 − β₂) g²,
    θ' = (1 − η·decay) θ [AdamW] − η m̂ / (√v̂ + ε),   m̂ = m' / (1 − β₁ᵗ),   v̂ = v' / (1 − β₂ᵗ)

(Kingma and Ba 2015, arXiv 1412.6980; Loshchilov and Hutter 2019, arXiv 1711.05101; clipping as
`torch.nn.utils.clip_grad_norm_`), as PyTorch computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fudlr.gradients.store import Recipe


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
        """The state after the step, G being `gradient` `[d]`."""
        recipe = self.recipe
        g = self._effective(before, gradient)[1]
        mean = recipe.betas[0] * before.mean + (1 - recipe.betas[0]) * g
        square = recipe.betas[1] * before.square + (1 - recipe.betas[1]) * g.square()
        moved = self._mean(mean) / (self._root(square) + recipe.eps)
        return State(before.theta * self._kept - self.rate * moved, mean, square)

    def linear(self, before: State, gradient: Tensor, after: State) -> LinearStep:
        """The step's derivative, for `gradient` `[d]` leading from `before` to `after`."""
        raw, g = self._effective(before, gradient)
        root = self._root(after.square)
        whole = root + self.recipe.eps
        by_mean = -self.rate / (1 - self.recipe.betas[0] ** self.t) / whole
        by_root = self.rate * self._mean(after.mean) / whole.square()
        by_square = by_root / (2 * root * (1 - self.recipe.betas[1] ** self.t))
        # Where v' is 0, g and m' are too, and v' counts for nothing.
        by_square = torch.where(root > 0, by_square, 0.0)
        return LinearStep(self, raw, g, by_mean, by_square)

    @property
    def _kept(self) -> float:
        decays = self.recipe.optimiser == "AdamW"
        return 1 - self.rate * self.recipe.weight_decay if decays else 1.0

    @property
    def coupled(self) -> float:
        """The decay that is part of the gradient."""
        return self.recipe.weight_decay if self.recipe.optimiser == "Adam" else 0.0

    def _effective(self, before: State, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """q and g."""
        raw = torch.add(gradient, before.theta - self.start, alpha=self.recipe.l2)
        factor = self.clipping(raw)[0]
        g = raw if factor == 1 else factor * raw
        return raw, g if not self.coupled else g + self.coupled * before.theta

    def clipping(self, raw: Tensor) -> tuple[float, float]:
        """The factor of q, and its norm where it is clipped, else 0."""
        if self.recipe.clip is None:
            return 1.0, 0.0
        norm = float(raw.norm())
        factor = self.recipe.clip / (norm + 1e-6)
        return (factor, norm) if factor < 1 else (1.0, 0.0)

    def _mean(self, mean: Tensor) -> Tensor:
        return mean / (1 - self.recipe.betas[0] ** self.t)

    def _root(self, square: Tensor) -> Tensor:
        return (square / (1 - self.recipe.betas[1] ** self.t)).sqrt()


@dataclass(frozen=True)
class LinearStep:
    """The derivative of one step.

    Attributes:
        step: Which.
        raw, gradient: q and g `[d]`.
        by_mean, by_square: ∂θ'/∂m' and ∂θ'/∂v' `[d]`.
    """

    step: OptimiserStep
    raw: Tensor
    gradient: Tensor
    by_mean: Tensor
    by_square: Tensor

    def tangent(self, before: State, change: Tensor) -> State:
        """What small changes of the state `before` and of G, `change`, make of the state after,
        all `[k, d]`."""
        recipe, b1, b2 = self.step.recipe, *self.step.recipe.betas
        g = self._clipped(change + recipe.l2 * before.theta) + self.step.coupled * before.theta
        mean = b1 * before.mean + (1 - b1) * g
        square = b2 * before.square + 2 * (1 - b2) * self.gradient * g
        theta = self.step._kept * before.theta + self.by_mean * mean + self.by_square * square
        return State(theta, mean, square)

    def transposed(self, later: State) -> tuple[Tensor, State]:
        """The transpose of `tangent`: what depends on G and the state before, given what does on
        the state after, all `[k, d]`."""
        recipe, b1, b2 = self.step.recipe, *self.step.recipe.betas
        mean = torch.addcmul(later.mean, self.by_mean, later.theta)
        square = torch.addcmul(later.square, self.by_square, later.theta)
        g = torch.addcmul((1 - b1) * mean, self.gradient, square, value=2 * (1 - b2))
        change = self._clipped(g)
        theta = torch.add(self.step._kept * later.theta, change, alpha=recipe.l2)
        if self.step.coupled:
            theta += self.step.coupled * g
        return change, State(theta, mean.mul_(b1), square.mul_(b2))

    def _clipped(self, change: Tensor) -> Tensor:
        """∂g/∂q, which is symmetric, times `change` `[k, d]`."""
        factor, norm = self.step.clipping(self.raw)
        if not norm:
            return change
        # g = clip q / (|q| + e): its derivative is factor (1 − q qᵀ / (|q| (|q| + e))).
        along = (change @ self.raw) / (norm * (norm + 1e-6))
        return factor * (change - along[:, None] * self.raw)
