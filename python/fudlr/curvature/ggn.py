"""Generalised Gauss-Newton matrix, with the entries between layers.

    H₀ = (1/n) Σ J_iᵀ (∂²ℓ_i/∂z²) J_i,   z the model's outputs, J_i = ∂z_i/∂θ

The Hessian without the part that bends the model itself; positive semidefinite wherever the loss
is convex in z, as cross-entropy is, and there equal to the true Fisher (Schraudolph 2002, "Fast
curvature matrix-vector products for second-order gradient descent"; Martens 2020, JMLR 21(146)).
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from fudlr.batches import Batches, Source
from fudlr.curvature.base import Forward, Loss, Parts, mean_product, weighted


class GGNEngine(Protocol):
    """What this curvature asks of an engine."""

    def ggn_vp(self, forward: Forward, loss: Loss, batch: Any, vectors: Tensor) -> Tensor:
        """GGN products of the batch's mean loss, `[k, d]`."""
        ...


class GGN:
    """GGN of the mean loss, computed anew batch by batch at each product.

    Args:
        engine: Gives `ggn_vp`, a mean over a batch.
        forward: `forward(model, batch) -> outputs`.
        loss: `loss(outputs, batch) -> [n]`.
        batches: The samples.
        weights: `[n]`, for instance 1 − m for the curvature of what is kept; ones by default.
    """

    name = "ggn"
    semidefinite = True
    couples_layers = True

    def __init__(
        self,
        engine: GGNEngine,
        forward: Forward,
        loss: Loss,
        batches: Batches | Source,
        weights: Tensor | None = None,
    ) -> None:
        self._engine = engine
        forward, loss, self._batches = weighted(forward, loss, Batches.of(batches), weights)
        self._face = (forward, loss)

    @classmethod
    def make(cls, parts: Parts) -> GGN:
        """At the adapter that the engine holds."""
        return cls(parts.engine, parts.forward, parts.loss, parts.batches, parts.weights)

    def product(self, vectors: Tensor) -> Tensor:
        """H₀ v for each row v of `vectors` `[k, d]`, `[k, d]`."""
        return mean_product(self._engine.ggn_vp, *self._face, self._batches, vectors)
