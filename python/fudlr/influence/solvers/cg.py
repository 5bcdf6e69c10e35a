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
    worst,
)


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
    start: Tensor | None = None,
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
        start: First guess `[k, d]`; zeros by default.

    Returns:
        The solution; never NaN, whatever its status.

    Raises:
        DataError, UsageError, NumericalError: As `check_system`, for shapes that do not fit, and
            for a preconditioner that is not positive definite.
    """
    check_system(rhs, damping)
    _check_options(rhs, max_steps, tolerance, start)
    state = _State(rhs, tolerance)
    state.begin(start, product, damping, preconditioner)
    steps = 0
    while steps < max_steps and state.active.numel():
        state.advance(product, damping, preconditioner)
        steps += 1
    return state.solution(steps, damping)


class _State:
    """Iterates of all right-hand sides; `direction` and `inner` are those of `active` alone."""

    def __init__(self, rhs: Tensor, tolerance: float) -> None:
        self.tolerance = tolerance
        self.x = torch.zeros_like(rhs)
        self.residual = rhs.clone()
        self.norms = rhs.norm(dim=1)
        self.statuses = [Status.MAX_STEPS] * rhs.shape[0]
        self.active = torch.arange(rhs.shape[0], device=rhs.device)
        self.direction = self.residual
        self.inner = self.norms.square()
        self.smallest = math.inf
        """Smallest vᵀ (H₀ + damping) v / vᵀ v over the directions searched."""

    def begin(
        self, start: Tensor | None, product: Product, damping: float, preconditioner: Product | None
    ) -> None:
        if start is not None:
            start = start.to(self.x)
            # A zero right-hand side has the solution zero, wherever the start was.
            start = start * (self.norms > 0)[:, None]
            applied = product(start) + damping * start
            (applied,) = self._keep(applied.isfinite().all(dim=1), Status.NOT_FINITE, applied)
            self.x[self.active] = start[self.active]
            self.residual[self.active] -= applied
        self._freeze_converged()
        self.direction = self._precondition(preconditioner)
        self.inner = (self.residual[self.active] * self.direction).sum(dim=1)

    def advance(self, product: Product, damping: float, preconditioner: Product | None) -> None:
        applied = product(self.direction) + damping * self.direction
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
        self._turn(preconditioner)

    def _turn(self, preconditioner: Product | None) -> None:
        conditioned = self._precondition(preconditioner)
        inner = (self.residual[self.active] * conditioned).sum(dim=1)
        self.direction = conditioned + (inner / self.inner)[:, None] * self.direction
        self.inner = inner

    def _precondition(self, preconditioner: Product | None) -> Tensor:
        residual = self.residual[self.active]
        if preconditioner is None or not self.active.numel():
            return residual
        conditioned = preconditioner(residual)
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

    def solution(self, steps: int, damping: float) -> Solution:
        one = torch.ones_like(self.norms)
        residuals = self.residual.norm(dim=1) / torch.where(self.norms > 0, self.norms, one)
        message = self._message(float(residuals.max()), steps, damping)
        return Solution(self.x, residuals, steps, tuple(self.statuses), message)

    def _message(self, residual: float, steps: int, damping: float) -> str:
        status = worst(self.statuses)
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


def _check_options(rhs: Tensor, max_steps: int, tolerance: float, start: Tensor | None) -> None:
    if max_steps < 1 or not 0 <= tolerance < 1:
        raise UsageError(
            "conjugate gradients need max_steps ≥ 1 and 0 ≤ tolerance < 1",
            f"max_steps {max_steps}, tolerance {tolerance}",
            "The defaults are 50 and 1e-4",
        )
    if start is not None and (start.shape != rhs.shape or not bool(start.isfinite().all())):
        raise DataError(
            f"a start was to be finite and of the right-hand sides' shape {tuple(rhs.shape)}",
            f"shape {tuple(start.shape)}, or entries that are not finite",
            "Leave it out to start from zero",
        )
