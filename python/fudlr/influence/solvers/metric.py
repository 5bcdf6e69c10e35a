"""A damping of its own for each parameter, for solvers that know one number alone.

    (H₀ + diag(m)) x = b   ⇔   (W H₀ W + 1) y = W b,   x = W y,   W = diag(m)^{−1/2}

Residuals are of the second form: in units of each parameter's damping.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.influence.solvers.base import HasProduct, Solution, Solve


class InMetric:
    """W H₀ W, seen through its products, and the way there and back.

    Args:
        curvature: H₀.
        damping: m `[d]`, above 0.

    Raises:
        UsageError: A damping is not above 0, or not finite.
    """

    def __init__(self, curvature: HasProduct, damping: Tensor) -> None:
        if not bool((damping > 0).all() and damping.isfinite().all()):
            raise UsageError(
                "each parameter was to be damped by a number of its own",
                "some are not above 0, or not finite",
                "Give the λ of the training loss, or a damping above 0, beside them",
            )
        self._curvature = curvature
        self._scale = damping.rsqrt()

    def product(self, vectors: Tensor) -> Tensor:
        """W H₀ W v for each row v of `vectors` `[k, d]`."""
        scale = self._scale.to(vectors)
        return scale * self._curvature.product(scale * vectors)

    def solver(self, solve: Solve) -> Solve:
        """(H₀ + diag(m))⁻¹, given (W H₀ W + 1)⁻¹."""

        def scaled(rhs: Tensor) -> Solution:
            scale = self._scale.to(rhs)
            found = solve(scale * rhs)
            return replace(found, x=scale * found.x)

        return scaled
