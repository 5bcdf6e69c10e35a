"""What a solver returns: the solution, how good it is, and what to do where it is not.

And the solver `direct`: a curvature's own closed form of the damped solve, where it has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor

from fudlr.common.errors import DataError, NumericalError, UsageError

Product = Callable[[Tensor], Tensor]
"""Multiplies each row of `[k, d]` with a symmetric matrix."""


class HasProduct(Protocol):
    """A symmetric matrix seen through its products."""

    def product(self, vectors: Tensor) -> Tensor:
        """H₀ v for each row v of `vectors` `[k, d]`, without damping."""
        ...


class Status(Enum):
    """How the solve of one right-hand side ended, from best to worst."""

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    NEGATIVE_CURVATURE = "negative_curvature"
    NOT_FINITE = "not_finite"


@dataclass(frozen=True)
class Solution:
    """Solutions of (H₀ + damping · I) x = b for k right-hand sides.

    Attributes:
        x: `[k, d]`, finite in every status.
        residuals: ‖b − (H₀ + damping) x‖ / ‖b‖, `[k]`; 0 where b is 0. Those of conjugate
            gradients are carried along by its recursion, not computed anew.
        steps: Products that the solve took, at most.
        statuses: One a right-hand side.
        message: What happened, its likely cause, and what to try.
    """

    x: Tensor
    residuals: Tensor
    steps: int
    statuses: tuple[Status, ...]
    message: str

    @property
    def status(self) -> Status:
        """The worst of the statuses."""
        return max(self.statuses, key=list(Status).index)

    @property
    def warnings(self) -> list[str]:
        """The message where a person should see it: at anything worse than too few steps."""
        fine = (Status.CONVERGED, Status.MAX_STEPS)
        return [] if self.status in fine else [self.message]


Solve = Callable[[Tensor], Solution]
"""Right-hand sides `[k, d]` to their solution: a curvature, its damping and a solver in one."""


def check_system(rhs: Tensor, damping: float) -> None:
    """Refuse what no solver can answer.

    Raises:
        DataError: `rhs` is no float32 or float64 matrix with at least one row.
        NumericalError: A right-hand side is not finite.
        UsageError: The damping is negative or not finite.
    """
    if rhs.dim() != 2 or rhs.shape[0] == 0 or rhs.dtype not in (torch.float32, torch.float64):
        raise DataError(
            "a solve needs right-hand sides [k, d], k ≥ 1, in float32 or float64",
            f"{rhs.dtype} of shape {tuple(rhs.shape)}",
            "A single one is a matrix with one row: b[None]; widen 16-bit gradients first",
        )
    if not math.isfinite(damping) or damping < 0:
        raise UsageError(
            "a solve needs a damping that is finite and not negative",
            f"{damping}",
            "Give the λ of the training loss, or more where training stopped early",
        )
    broken = (~rhs.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise NumericalError(
            "a linear system was to be solved",
            f"right-hand side {broken[0]} of {rhs.shape[0]} has NaN or infinite entries",
            "Look at the metric or the samples that it was made of",
        )


def direct_solver(curvature: Any, damping: float) -> Solve:
    """x = curvature.inverse(b, damping); the residual is against the curvature's product.

    Raises:
        UsageError: The curvature has no closed form.
        NumericalError: From the solver, where the closed form is not finite.
    """
    if not hasattr(curvature, "inverse"):
        raise UsageError(
            "the direct solver was to solve with a curvature",
            f"{type(curvature).__name__} has no closed form of the damped inverse",
            "Use ekfac or identity, or the cg solver",
        )

    def solve(rhs: Tensor) -> Solution:
        check_system(rhs, damping)
        x = curvature.inverse(rhs, damping)
        if not bool(x.isfinite().all()):
            raise NumericalError(
                "a system was to be solved by a curvature's closed form",
                "the solution is not finite",
                f"Raise the damping ({damping:g})",
            )
        residuals = relative(rhs - curvature.product(x) - damping * x, rhs)
        message = (
            f"Solved in closed form; against the curvature's product the relative residual is "
            f"{float(residuals.max()):.2g}."
        )
        return Solution(x, residuals, 1, (Status.CONVERGED,) * len(rhs), message)

    return solve


def relative(residual: Tensor, rhs: Tensor) -> Tensor:
    """‖r_j‖ / ‖b_j‖ `[k]`; ‖r_j‖ where b_j is 0."""
    norms = rhs.norm(dim=1)
    return residual.norm(dim=1) / torch.where(norms > 0, norms, 1.0)
