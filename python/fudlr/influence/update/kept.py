"""The loss as masked samples leave it, its gradient and its Taylor series.

    L_t(θ) = (1/n) Σ (1 − t m_i) ℓ_i(θ) + (λ/2)‖θ − θ₀‖² − s_t ⟨r, θ⟩,   r = ∇L_0(θ*) without s

t = 0 is the training that ended at θ*, t = 1 the one without the masked samples; the divisor stays
n. r is the slope left at θ* where training stopped early. *Held* (s_t = 1), θ* is stationary at
t = 0, and L_1 is stationary where a training that stops as early would end; *descended*
(s_t = 1 − t), L_1 is the plain loss, whose minimum is where a training to its end would arrive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.common.batches import Batches
from fudlr.gradients.store import GradientRows
from fudlr.gradients.store.rows import Forward, Loss
from fudlr_ext import Engine
from fudlr_ext.reducers import Sums


class KeptLoss:
    """L_1, its gradient anywhere, and the series of ∇L_t about θ* and t = 0.

    Args:
        engine: The model; `theta` is loaded into it again after each call.
        forward: `forward(model, batch) -> outputs`.
        loss: `loss(outputs, batch) -> [n]`.
        batches: The training samples, or the part of them in `index`.
        rows: Gradients of all n training samples at θ*.
        mask: m `[n]`.
        theta: θ* `[d]`.
        start: θ₀ `[d]`.
        l2: λ.
        index: Which samples `batches` holds, `[s]`, a random part; all where None. Away from θ*
            their mean change of the gradient stands for all samples', so that at θ* nothing is
            sampled.
        descend: Descend the slope that is left at θ*, instead of holding it.
    """

    def __init__(
        self,
        engine: Engine,
        forward: Forward,
        loss: Loss,
        batches: Batches,
        *,
        rows: GradientRows,
        mask: Tensor,
        theta: Tensor,
        start: Tensor,
        l2: float,
        index: Tensor | None = None,
        descend: bool = False,
    ) -> None:
        self.engine, self.theta, self.start, self.l2 = engine, theta, start, l2
        self.mask, self.descend = mask.to(theta), descend
        self._face = (forward, loss)
        self._batches = batches
        self._index = torch.arange(rows.n) if index is None else index
        keep = 1 - self.mask
        part = torch.zeros_like(keep)
        part[self._index] = keep[self._index] / len(self._index)
        weights = torch.stack([torch.ones_like(keep) / rows.n, keep / rows.n, part])
        everything, kept, sampled = rows.sum(weights)
        self.slope = everything + l2 * (theta - start)
        """∇L(θ*) [d], of all samples and λ; zero at an optimum."""
        self._correction = sampled - kept
        if not descend:
            self._correction = self._correction + self.slope
        self._weights = part[self._index]

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """L_1 up to a constant, and its gradient `[d]`, at `theta`; one pass over the batches."""
        self.engine.load(theta)
        value, gradient = 0.0, torch.zeros_like(theta)
        try:
            for batch, rows in self._batches:
                weights = self._weights[rows]
                sums = Sums(weights[None].contiguous())
                losses = self.engine.reduce(*self._face, batch, [sums])
                value += float(losses.double() @ weights.double())
                gradient += sums.result()[0]
        finally:
            self.engine.load(self.theta)
        way, pull = theta - self.theta, theta - self.start
        value += self.l2 / 2 * float(pull.double().square().sum())
        value -= float(self._correction.double() @ way.double())
        return value, gradient + self.l2 * pull - self._correction

    def taylor_gradient(self, path: Tensor, order: int) -> Tensor:
        """The Taylor polynomial of ∇L_t(θ* + Σ_j path_j tʲ) in t, at t = 1, `[d]`.

        Only derivatives at θ* go into it; its constant, ∇L_0(θ*), is zero or left out.

        Args:
            path: Coefficients `[j, d]`.
            order: Of the polynomial; terms of the path beyond it count for nothing.
        """
        total = torch.zeros_like(self.theta)
        removed = self.mask[self._index]
        for batch, rows in self._batches:
            part = self.engine.taylor_gradient(
                *self._face, batch, path[:order], removed=removed[rows], order=order
            )
            total.add_(part, alpha=(rows.stop - rows.start) / len(self._index))
        total = total + self.l2 * path[:order].sum(dim=0)
        return total + self.slope if self.descend else total
