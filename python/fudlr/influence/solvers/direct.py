"""A curvature's own closed form of the damped solve, where it has one.

    x = curvature.inverse(b, damping)

K-FAC and EK-FAC invert exactly what they multiply with; DataInf's inverse is its approximation of
the block Fisher's, and the residual, against the product, says how good a one.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fudlr.common.errors import NumericalError
from fudlr.influence.solvers.base import Solution, Status, check_system


@runtime_checkable
class Invertible(Protocol):
    """A curvature with a closed form of the damped solve."""

    def product(self, vectors: Tensor) -> Tensor:
        """H₀ v for each row v of `vectors` `[k, d]`, without damping."""
        ...

    def inverse(self, rhs: Tensor, damping: float) -> Tensor:
        """(H₀ + damping · I)⁻¹ b for each row b of `rhs` `[k, d]`."""
        ...


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
