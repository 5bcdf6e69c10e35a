"""Exact Hessian of the mean loss.

    H₀ = (1/n) Σ ∇²ℓ_i

Exact where θ* is a minimum; away from one it is indefinite in practice, and conjugate gradients
will say so (see `solvers.cg`). Products by Pearlmutter 1994, "Fast exact multiplication by the
Hessian".
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from fudlr.batches import Batches, Source
from fudlr.curvature.base import Forward, Loss, Parts, mean_product, weighted


class HessianEngine(Protocol):
    """What this curvature asks of an engine."""

    def hvp(self, forward: Forward, loss: Loss, batch: Any, vectors: Tensor) -> Tensor:
        """Exact Hessian products of the batch's mean loss, `[k, d]`."""
        ...


class Hessian:
    """Hessian of the mean loss, computed anew batch by batch at each product.

    Args:
        engine: Gives `hvp`, a mean over a batch.
        forward: `forward(model, batch) -> outputs`.
        loss: `loss(outputs, batch) -> [n]`.
        batches: The samples.
        weights: `[n]`, for instance 1 − m for the curvature of what is kept; ones by default.
    """

    name = "hessian"
    semidefinite = False
    couples_layers = True

    def __init__(
        self,
        engine: HessianEngine,
        forward: Forward,
        loss: Loss,
        batches: Batches | Source,
        weights: Tensor | None = None,
    ) -> None:
        self._engine = engine
        forward, loss, self._batches = weighted(forward, loss, Batches.of(batches), weights)
        self._face = (forward, loss)

    @classmethod
    def make(cls, parts: Parts) -> Hessian:
        """At the adapter that the engine holds."""
        return cls(parts.engine, parts.forward, parts.loss, parts.batches, parts.weights)

    def product(self, vectors: Tensor) -> Tensor:
        """H₀ v for each row v of `vectors` `[k, d]`, `[k, d]`."""
        return mean_product(self._engine.hvp, *self._face, self._batches, vectors)
