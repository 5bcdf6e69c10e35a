"""Generalised Gauss-Newton matrix, with the entries between layers.

    H₀ = (1/n) Σ J_iᵀ (∂²ℓ_i/∂z²) J_i,   z the model's outputs, J_i = ∂z_i/∂θ

The Hessian without the part that bends the model itself; positive semidefinite wherever the loss
is convex in z, as cross-entropy is, and there equal to the true Fisher (Schraudolph 2002, "Fast
curvature matrix-vector products for second-order gradient descent"; Martens 2020, JMLR 21(146)).
"""

from __future__ import annotations

from fudlr.influence.curvature.base import EngineCurvature


class GGN(EngineCurvature):
    """Generalised Gauss-Newton matrix of the mean loss."""

    semidefinite = True
    operation = "ggn_vp"
