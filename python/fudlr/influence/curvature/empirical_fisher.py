"""Empirical Fisher of whole samples, with the entries between layers.

    H₀ = (1/n) Gᵀ G = (1/n) Σ g_i g_iᵀ,   g_i the gradient of sample i's own loss

It stands in for the Hessian; it equals neither the GGN nor the true Fisher, whose labels are drawn
from the model (Kunstner, Balles, Hennig 2019, "Limitations of the empirical Fisher approximation
for natural gradient descent", arXiv 1905.12558). g_i is a sample's gradient, not a token's.
"""

from __future__ import annotations

from torch import Tensor

from fudlr.influence.curvature.base import GramRows, Parts


class EmpiricalFisher:
    """(1/n) Gᵀ diag(w) G from per-sample gradients.

    Args:
        rows: The gradients G, `[n, d]`, stored or recomputed.
        weights: `[n]`, for instance 1 − m for the curvature of what is kept; ones by default.
    """

    semidefinite = True
    couples_layers = True
    from_rows = True

    def __init__(self, rows: GramRows, weights: Tensor | None = None) -> None:
        self.rows = rows
        self.weights = weights

    @classmethod
    def make(cls, parts: Parts) -> EmpiricalFisher:
        """From the rows."""
        return cls(parts.rows, parts.of_squares)

    def product(self, vectors: Tensor) -> Tensor:
        """(1/n) Gᵀ diag(w) G v for each row v of `vectors` `[k, d]`, `[k, d]`."""
        return self.rows.gram_product(vectors, self.weights)
