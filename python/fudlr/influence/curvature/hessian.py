"""Exact Hessian of the mean loss.

    H₀ = (1/n) Σ ∇²ℓ_i

Exact where θ* is a minimum; away from one it is indefinite in practice, and conjugate gradients
will say so (see `solvers.cg`). Products by Pearlmutter 1994, "Fast exact multiplication by the
Hessian".
"""

from __future__ import annotations

from fudlr.influence.curvature.base import EngineCurvature


class Hessian(EngineCurvature):
    """Exact Hessian of the mean loss."""

    semidefinite = False
    operation = "hvp"
