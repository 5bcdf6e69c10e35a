"""Solvers of (H₀ + damping · I) x = b: each sees a product or a matrix, never a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fudlr.common.errors import UsageError
from fudlr.influence.solvers.base import HasProduct, Product, Solution, Solve, Status
from fudlr.influence.solvers.cg import solve_cg
from fudlr.influence.solvers.direct import Invertible, solve_direct
from fudlr.influence.solvers.lanczos import solve_dampings, solve_lanczos
from fudlr.influence.solvers.lissa import solve_lissa
from fudlr.influence.solvers.metric import InMetric
from fudlr.influence.solvers.sampled import sampled_preconditioner
from fudlr.influence.solvers.woodbury import solve_woodbury

__all__ = [
    "SOLVERS",
    "InMetric",
    "Product",
    "Solution",
    "Solve",
    "Status",
    "make_solver",
    "sampled_preconditioner",
    "solve_cg",
    "solve_dampings",
    "solve_direct",
    "solve_lanczos",
    "solve_lissa",
    "solve_woodbury",
]


def _cg(curvature: HasProduct, damping: float, **options: Any) -> Solve:
    return partial(solve_cg, curvature.product, damping=damping, **options)


def _woodbury(curvature: HasProduct, damping: float, **options: Any) -> Solve:
    matrix = getattr(getattr(curvature, "rows", None), "matrix", None)
    if matrix is None:
        raise UsageError(
            "woodbury was to solve with a curvature",
            f"{type(curvature).__name__} has no stored rows of gradients",
            "Use the empirical Fisher with rows in memory, or the cg solver",
        )
    weights = getattr(curvature, "weights", None)
    return partial(solve_woodbury, matrix, damping=damping, weights=weights, **options)


def _direct(curvature: HasProduct, damping: float, **options: Any) -> Solve:
    if not isinstance(curvature, Invertible):
        raise UsageError(
            "the direct solver was to solve with a curvature",
            f"{type(curvature).__name__} has no closed form of the damped inverse",
            "Use kfac, ekfac or datainf, or the cg solver",
        )

    return partial(solve_direct, curvature, damping=damping, **options)


def _lanczos(curvature: HasProduct, damping: float, **options: Any) -> Solve:
    return partial(solve_lanczos, curvature.product, damping=damping, **options)


def _lissa(curvature: HasProduct, damping: float, **options: Any) -> Solve:
    return partial(solve_lissa, curvature.product, damping=damping, **options)


SOLVERS: dict[str, Callable[..., Solve]] = {
    "cg": _cg,
    "direct": _direct,
    "lanczos": _lanczos,
    "lissa": _lissa,
    "woodbury": _woodbury,
}
"""Every solver by the name that options use: `(curvature, damping, **options) -> Solve`."""


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
