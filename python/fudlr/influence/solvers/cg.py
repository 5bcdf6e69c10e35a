"""Conjugate gradients for several right-hand sides at once.

    (H₀ + damping · I) x_j = b_j,   j = 1 … k

Hestenes and Stiefel 1952; preconditioned as in Saad 2003, "Iterative methods for sparse linear
systems", algorithm 9.1. Each right-hand side has its own step sizes, so that solving together
gives what solving alone gives; together they only share the passes over the data. What has
converged is frozen and no longer multiplied. On a direction of curvature ≤ 0 the iteration keeps
what it has, as truncated Newton methods do (Steihaug 1983), and says so.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fudlr.common.errors import DataError, NumericalError, UsageError
from fudlr.influence.solvers.base import (
    HasProduct,
    Product,
    Solution,
    Solve,
    Status,
    check_system,
    relative,
)

EXCESS = 2.0
"""μ / damping of the preconditioner: above 1, since the directions that Ĝ lacks have some curvature
too."""


def cg_solver(curvature: HasProduct, damping: float, **options: Any) -> Solve:
    """Conjugate gradients with a curvature's products; `options` are those of `solve_cg`."""
    return partial(solve_cg, curvature.product, damping=damping, **options)


def solve_cg(
    product: Product,
    rhs: Tensor,
    damping: float,
    *,
    max_steps: int = 50,
    tolerance: float = 1e-4,
    preconditioner: Product | None = None,
) -> Solution:
    """Solve (H₀ + damping · I) x = b for each row b of `rhs`.

    Args:
        product: H₀ v for each row v of `[k, d]`, without damping, for any k.
        rhs: `[k, d]`, float32 or float64.
        damping: Absolute; added here and nowhere else.
        max_steps: Largest number of iterations; each costs one product with what is not frozen.
        tolerance: Relative residual at which a right-hand side counts as solved.
        preconditioner: About (H₀ + damping · I)⁻¹ r for each row; symmetric positive definite.
            It is given as many rows as are not frozen.

    Returns:
        The solution; never NaN, whatever its status.

    Raises:
        DataError, UsageError, NumericalError: As `check_system`, and for a preconditioner that is
            not positive definite.
    """
    check_system(rhs, damping)
    if max_steps < 1 or not 0 <= tolerance < 1:
        raise UsageError(
            "conjugate gradients need max_steps ≥ 1 and 0 ≤ tolerance < 1",
            f"max_steps {max_steps}, tolerance {tolerance}",
            "The defaults are 50 and 1e-4",
        )
    state, steps = _State(rhs, damping, tolerance, preconditioner), 0
    while steps < max_steps and state.active.numel():
        state.advance(product)
        steps += 1
    residuals = relative(state.residual, rhs)
    message = state.message(float(residuals.max()), steps)
    return Solution(state.x, residuals, steps, tuple(state.statuses), message)


class _State:
    """Iterates of all right-hand sides; `direction` and `inner` are those of `active` alone."""

    def __init__(
        self, rhs: Tensor, damping: float, tolerance: float, preconditioner: Product | None
    ) -> None:
        self.damping, self.tolerance, self._preconditioner = damping, tolerance, preconditioner
        self.x, self.residual = torch.zeros_like(rhs), rhs.clone()
        self.norms = rhs.norm(dim=1)
        self.statuses = [Status.MAX_STEPS] * len(rhs)
        self.active = torch.arange(len(rhs), device=rhs.device)
        self.direction, self.inner = self.residual, self.norms.square()
        self.smallest = math.inf
        """Smallest vᵀ (H₀ + damping) v / vᵀ v over the directions searched."""
        self._freeze_converged()
        self.direction = self._precondition()
        self.inner = (self.residual[self.active] * self.direction).sum(dim=1)

    def advance(self, product: Product) -> None:
        applied = product(self.direction) + self.damping * self.direction
        curvature = (self.direction * applied).sum(dim=1)
        finite = curvature.isfinite() & applied.isfinite().all(dim=1)
        (applied, curvature) = self._keep(finite, Status.NOT_FINITE, applied, curvature)
        if self.active.numel():
            length = self.direction.square().sum(dim=1)
            self.smallest = min(self.smallest, float((curvature / length).min()))
        (applied, curvature) = self._keep(
            curvature > 0, Status.NEGATIVE_CURVATURE, applied, curvature
        )
        step = (self.inner / curvature)[:, None]
        x = self.x[self.active] + step * self.direction
        residual = self.residual[self.active] - step * applied
        # Finite products can still overflow here; the last finite iterate stays.
        finite = x.isfinite().all(dim=1) & residual.isfinite().all(dim=1)
        (x, residual) = self._keep(finite, Status.NOT_FINITE, x, residual)
        self.x[self.active] = x
        self.residual[self.active] = residual
        self._freeze_converged()
        conditioned = self._precondition()
        inner = (self.residual[self.active] * conditioned).sum(dim=1)
        self.direction = conditioned + (inner / self.inner)[:, None] * self.direction
        self.inner = inner

    def _precondition(self) -> Tensor:
        residual = self.residual[self.active]
        if self._preconditioner is None or not self.active.numel():
            return residual
        conditioned = self._preconditioner(residual)
        if conditioned.shape != residual.shape or not bool(
            ((residual * conditioned).sum(dim=1) > 0).all()
        ):
            raise NumericalError(
                "conjugate gradients need a preconditioner that is positive definite",
                "it turned a residual by more than a right angle, to NaN, or to another shape",
                "Use the inverse of a damped positive semidefinite matrix, or none",
            )
        return conditioned

    def _freeze_converged(self) -> None:
        size = self.residual[self.active].norm(dim=1)
        self._keep(size > self.tolerance * self.norms[self.active], Status.CONVERGED)

    def _keep(self, keep: Tensor, status: Status, *others: Tensor) -> tuple[Tensor, ...]:
        """Drop what is not to be kept from the active, under `status`; cut `others` alike."""
        if bool(keep.all()):
            return others
        for index in self.active[~keep].tolist():
            self.statuses[index] = status
        self.active = self.active[keep]
        self.direction, self.inner = self.direction[keep], self.inner[keep]
        return tuple(other[keep] for other in others)

    def message(self, residual: float, steps: int) -> str:
        status, damping = max(self.statuses, key=list(Status).index), self.damping
        found = [str(j) for j, each in enumerate(self.statuses) if each is status]
        which = f"{len(found)} of {len(self.statuses)} right-hand sides (number {', '.join(found)})"
        if status is Status.NOT_FINITE:
            return (
                f"The curvature's product gave NaN or infinity for {which}; the last finite "
                "iterate was kept. Likely an overflow in the model, or gradients that are not "
                "finite: use float32 or float64, and check the loss sample by sample."
            )
        if status is Status.NEGATIVE_CURVATURE:
            return (
                "Negative curvature: along a search direction the damped curvature was "
                f"{self.smallest:.3g} for {which}, so the loss has no minimum there and the solve "
                "stopped early. Likely the exact Hessian away from a minimum of the loss (training "
                f"stopped early), with a damping of {damping:g} that is too small for it. Raise "
                f"the damping to more than {damping - self.smallest:.3g}, or use ggn or "
                "empirical_fisher, which have no negative curvature."
            )
        if status is Status.MAX_STEPS:
            return (
                f"Stopped after {steps} steps with a relative residual of {residual:.2g}, where "
                f"{self.tolerance:g} was asked, for {which}. Ranking samples rarely needs more; "
                "for an update raise max_steps, give a preconditioner, or raise the damping "
                f"({damping:g})."
            )
        return f"Converged in {steps} steps to a relative residual of {residual:.2g}."


def sampled_preconditioner(rows: Tensor, damping: float) -> Product:
    """A preconditioner from a sample of the rows, all entries between layers included.

        M⁻¹ = (Ĝᵀ Ĝ / m + μ)⁻¹ = (1 − Ĝᵀ (Ĝ Ĝᵀ + m μ)⁻¹ Ĝ) / μ,   μ = 2 · damping

    (Woodbury; Frangella, Tropp, Udell 2021, arXiv 2110.02820, from a sketch of the matrix instead).
    The curvature's few large eigenvalues live in any few hundred rows and are what conjugate
    gradients are slow on. It costs one m × m matrix, and two products with Ĝ a step, where a step
    itself takes two with all rows.

    Args:
        rows: Ĝ, some rows of gradients `[m, p]`, spread over all.
        damping: That of the solve; above 0.

    Raises:
        DataError: No rows.
        NumericalError: The matrix is not positive definite in this precision.
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
