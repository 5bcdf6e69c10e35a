"""A curvature's own closed form of the damped solve, where it has one.

    x = curvature.inverse(b, damping)

The residual is against the curvature's product.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fudlr.common.errors import NumericalError, UsageError
from fudlr.influence.solvers.base import HasProduct, Solution, Solve, Status, check_system


@runtime_checkable
class Invertible(HasProduct, Protocol):
    """A curvature with a closed form of the damped solve."""

    def inverse(self, rhs: Tensor, damping: float) -> Tensor:
        """(H₀ + damping · I)⁻¹ b for each row b of `rhs` `[k, d]`."""
        ...


def direct_solver(curvature: HasProduct, damping: float) -> Solve:
    """The closed form of `curvature`.

    Raises:
        UsageError: It has none.
    """
    if not isinstance(curvature, Invertible):
        raise UsageError(
            "the direct solver was to solve with a curvature",
            f"{type(curvature).__name__} has no closed form of the damped inverse",
            "Use ekfac or identity, or the cg solver",
        )
    return partial(solve_direct, curvature, damping=damping)


def solve_direct(curvature: Invertible, rhs: Tensor, damping: float) -> Solution:
    """Solve (H₀ + damping · I) x = b for each row b of `rhs` by the curvature's closed form.

    Args:
        curvature: With `inverse` and `product`.
        rhs: `[k, d]`, float32 or float64.
        damping: Absolute.

    Raises:
        NumericalError: The closed form is not finite.
    """
    check_system(rhs, damping)
    x = curvature.inverse(rhs, damping)
    if not bool(x.isfinite().all()):
        raise NumericalError(
            "a system was to be solved by a curvature's closed form",
            "the solution is not finite",
            f"Raise the damping ({damping:g})",
        )
    left = rhs - curvature.product(x) - damping * x
    norms = rhs.norm(dim=1)
    residuals = left.norm(dim=1) / torch.where(norms > 0, norms, torch.ones_like(norms))
    message = (
        f"Solved in closed form; against the curvature's product the relative residual is "
        f"{float(residuals.max()):.2g}."
    )
    return Solution(x, residuals, 1, (Status.CONVERGED,) * len(rhs), message)
