"""Curvatures that are products with the samples' gradients, or computed anew by the engine.

    empirical Fisher   (1/n) Gᵀ G = (1/n) Σ g_i g_iᵀ,   g_i a sample's gradient, not a token's
    GGN                (1/n) Σ J_iᵀ (∂²ℓ_i/∂z²) J_i,   z the model's outputs, J_i = ∂z_i/∂θ
    Hessian            (1/n) Σ ∇²ℓ_i
    identity           I

All but the last have the entries between layers. The empirical Fisher stands in for the Hessian; it
equals neither the GGN nor the true Fisher, whose labels are drawn from the model (Kunstner, Balles,
Hennig 2019, arXiv 1905.12558). The GGN is the Hessian without the part that bends the model itself;
positive semidefinite wherever the loss is convex in z, as cross-entropy is, and there equal to the
true Fisher (Schraudolph 2002; Martens 2020, JMLR 21(146)). The Hessian is exact where θ* is a
minimum; away from one it is indefinite in practice, and conjugate gradients will say so (see
`solvers.cg`); products by Pearlmutter 1994. The identity is a baseline: influence is then the plain
product of gradients (as in TracIn, Pruthi et al. 2020, arXiv 2002.08484, at one checkpoint), which
ranks, and whose scale is a guess, so that its update is rescaled.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fudlr.common.errors import DataError
from fudlr.influence.curvature.parts import Parts


class EmpiricalFisher:
    """(1/n) Gᵀ diag(w) G from per-sample gradients."""

    couples_layers = True
    from_rows = True

    def __init__(self, parts: Parts) -> None:
        self._rows, self._weights = parts.rows, parts.of_squares

    def product(self, vectors: Tensor) -> Tensor:
        """(1/n) Gᵀ diag(w) G v for each row v of `vectors` `[k, d]`, `[k, d]`."""
        return self._rows.gram_product(vectors, self._weights)


class EngineCurvature:
    """Of the mean loss, by products that the engine computes anew, batch by batch."""

    couples_layers = True
    from_rows = False
    operation: ClassVar[str]
    """Name of the engine's `(forward, loss, batch, vectors [k, d]) -> [k, d]`, a mean over the
    batch."""

    def __init__(self, parts: Parts) -> None:
        self._device = parts.engine.device
        self._product = getattr(parts.engine, self.operation)
        *self._face, self._batches = parts.face(parts.weights)

    def product(self, vectors: Tensor) -> Tensor:
        """H₀ v for each row v of `vectors` `[k, d]`, `[k, d]`; memory does not grow with n."""
        if vectors.dim() != 2:
            raise DataError(
                "a curvature was to be multiplied with vectors [k, d]",
                f"a tensor of shape {tuple(vectors.shape)}",
                "A single vector is a matrix with one row: v[None]",
            )
        there = vectors.to(self._device)
        total = torch.zeros_like(there)
        for batch, rows in self._batches:
            mean = self._product(*self._face, batch, there)
            total.add_(mean, alpha=rows.stop - rows.start)
        return (total / self._batches.n).to(vectors.device)


class GGN(EngineCurvature):
    """Generalised Gauss-Newton matrix of the mean loss."""

    operation = "ggn_vp"


class Hessian(EngineCurvature):
    """Exact Hessian of the mean loss."""

    operation = "hvp"


class Identity:
    """I; the damping comes on top of it."""

    couples_layers = False
    from_rows = False

    def __init__(self, parts: Parts) -> None:
        pass

    def product(self, vectors: Tensor) -> Tensor:
        """v for each row v of `vectors` `[k, d]`, `[k, d]`."""
        return vectors

    def inverse(self, rhs: Tensor, damping: float) -> Tensor:
        """b / (1 + damping) for each row b of `rhs` `[k, d]`, `[k, d]`."""
        return rhs / (1 + damping)
