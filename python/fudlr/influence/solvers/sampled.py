"""Preconditioner from a sample of the rows, all entries between layers included.

    M⁻¹ = (Ĝᵀ Ĝ / m + μ)⁻¹ = (1 − Ĝᵀ (Ĝ Ĝᵀ + m μ)⁻¹ Ĝ) / μ,   μ = 2 · damping

Ĝ [m, p] are m of the n rows (Woodbury; Frangella, Tropp, Udell 2021, "Randomized Nyström
preconditioning", arXiv 2110.02820, from a sketch of the matrix instead). The curvature's few large
eigenvalues live in any few hundred rows and are what conjugate gradients are slow on. It costs one
m × m matrix, and two products with Ĝ a step, where a step itself takes two with all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.common.errors import DataError, NumericalError
from fudlr.influence.solvers.base import Product

EXCESS = 2.0
"""μ / damping: above 1, since the directions that Ĝ lacks have some curvature too."""


def sampled_preconditioner(rows: Tensor, damping: float) -> Product:
    """M⁻¹, to be given to `solve_cg` as its preconditioner.

    Args:
        rows: Ĝ, some rows of gradients `[m, p]`, spread over all.
        damping: That of the solve; above 0.

    Returns:
        Multiplies each row of `[k, p]` with M⁻¹, symmetric positive definite.

    Raises:
        DataError: No rows.
        NumericalError: The m × m matrix is not positive definite in this precision.
    """
    if rows.dim() != 2 or not len(rows):
        raise DataError(
            "a preconditioner was to be made from rows of gradients [m, p], m ≥ 1",
            f"shape {tuple(rows.shape)}",
            "Give some of the rows of the curvature",
        )
    shift = EXCESS * damping
    scaled = rows / len(rows) ** 0.5
    gram = scaled @ scaled.T
    gram.diagonal().add_(shift)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed):
        raise NumericalError(
            f"a preconditioner was to be made from {len(rows)} rows",
            f"with a damping of {damping:g} their products are not positive definite",
            "Raise the damping",
        )
    half = torch.linalg.solve_triangular(factor, scaled, upper=False)  # halfᵀ half = 1 − μ M⁻¹

    def product(vectors: Tensor) -> Tensor:
        own = half.to(vectors)
        return (vectors - (vectors @ own.T) @ own) / shift

    return product
