"""One step of Adam, what it does to a small change of its gradient, and the transpose of that.

    m' = β₁ m + (1 − β₁) g,   v' = β₂ v + (1 − β₂) g²,
    θ' = θ − η m̂ / (√v̂ + ε),   m̂ = m' / (1 − β₁ᵗ),   v̂ = v' / (1 − β₂ᵗ)

(Kingma and Ba 2015, arXiv 1412.6980), as `torch.optim.Adam` computes it with its usual options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPS = 1e-8


class Moments(NamedTuple):
    """Adam's running means of gradients and of their squares; or changes of them, `[..., d]`."""

    mean: Tensor
    square: Tensor

    @classmethod
    def zeros(cls, like: Tensor) -> Moments:
        """Those before the first step."""
        return cls(torch.zeros_like(like), torch.zeros_like(like))


@dataclass(frozen=True)
class AdamStep:
    """Step t of Adam.

    Attributes:
        t: From 1.
        rate: η.
        gradient: g `[d]`.
    """

    t: int
    rate: float
    gradient: Tensor

    def move(self, before: Moments) -> tuple[Moments, Tensor]:
        """The moments after the step, and how far it goes `[d]`."""
        mean = BETAS[0] * before.mean + (1 - BETAS[0]) * self.gradient
        square = BETAS[1] * before.square + (1 - BETAS[1]) * self.gradient.square()
        return Moments(mean, square), -self.rate * self._mean(mean) / (self._root(square) + EPS)

    def tangent(self, before: Moments, change: Tensor, after: Moments) -> tuple[Moments, Tensor]:
        """What a small `change` `[k, d]` of g and of the moments before makes of both results.

        Args:
            before: Changes of the moments before the step.
            change: Of g.
            after: The moments after the step, unchanged.
        """
        mean = BETAS[0] * before.mean + (1 - BETAS[0]) * change
        square = BETAS[1] * before.square + 2 * (1 - BETAS[1]) * self.gradient * change
        by_mean, by_square = self._slopes(after)
        return Moments(mean, square), by_mean * mean + by_square * square

    def transposed(self, later: Moments, pull: Tensor, after: Moments) -> tuple[Tensor, Moments]:
        """The transpose of `tangent`: what hangs on g, and on the moments before.

        Args:
            later: What hangs on the moments after the step `[k, d]`.
            pull: What hangs on θ after the step `[k, d]`.
            after: The moments after the step.
        """
        by_mean, by_square = self._slopes(after)
        mean, square = later.mean + by_mean * pull, later.square + by_square * pull
        change = (1 - BETAS[0]) * mean + 2 * (1 - BETAS[1]) * self.gradient * square
        return change, Moments(BETAS[0] * mean, BETAS[1] * square)

    def _slopes(self, after: Moments) -> tuple[Tensor, Tensor]:
        """∂θ'/∂m' and ∂θ'/∂v' `[d]`; where v' is 0, g and m' are too, and v' counts for nothing."""
        root = self._root(after.square)
        whole = root + EPS
        by_mean = -self.rate / (1 - BETAS[0] ** self.t) / whole
        by_root = self.rate * self._mean(after.mean) / whole.square()
        by_square = by_root / (2 * root * (1 - BETAS[1] ** self.t))
        return by_mean, torch.where(root > 0, by_square, 0.0)

    def _mean(self, mean: Tensor) -> Tensor:
        return mean / (1 - BETAS[0] ** self.t)

    def _root(self, square: Tensor) -> Tensor:
        return (square / (1 - BETAS[1] ** self.t)).sqrt()
