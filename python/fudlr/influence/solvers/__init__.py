"""Solvers of (H₀ + damping · I) x = b: each sees a product or an inverse, never a model.

A new one is a function in a file of its own and a line in `SOLVERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fudlr.common.errors import UsageError
from fudlr.influence.solvers.base import HasProduct, Solution, Solve, Status, direct_solver
from fudlr.influence.solvers.cg import cg_solver, sampled_preconditioner, solve_cg

SOLVERS: dict[str, Callable[..., Solve]] = {"cg": cg_solver, "direct": direct_solver}
"""Every solver by the name that options use: `(curvature, damping, **options) -> Solve`."""

__all__ = [
    "SOLVERS",
    "Solution",
    "Solve",
    "Status",
    "make_solver",
    "sampled_preconditioner",
    "solve_cg",
]


def make_solver(curvature: HasProduct, damping: float, solver: str = "cg", **options: Any) -> Solve:
    """H⁻¹ as a callable: a curvature, its damping and a solver in one.

    Args:
        curvature: H₀ through its products; no damping inside.
        damping: Absolute; H = H₀ + damping · I. At an optimum of the regularised loss its λ.
        solver: A name in `SOLVERS`.
        options: Handed on to the solver.

    Returns:
        `solve(rhs [k, d]) -> Solution`.

    Raises:
        UsageError: No such solver, or one that cannot use this curvature.
    """
    if solver not in SOLVERS:
        raise UsageError(
            f"a solver named {solver!r} was asked for",
            "there is none of that name",
            f"Choose one of {', '.join(sorted(SOLVERS))}",
        )
    return SOLVERS[solver](curvature, damping, **options)
