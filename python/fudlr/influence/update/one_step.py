"""Removal of masked samples in closed form.

    θ(m) = θ* + (1/n) H⁻¹ Gᵀ m

one Newton step from the optimum of L towards that of L with weights 1 − m and the same divisor n
(Guo et al. 2020, "Certified data removal", arXiv 1911.03030, for linear models; FUDLR, arXiv
2601.17492). The step is a whole one: a longer one would be steering, not removal.

H may be the curvature of all samples, or of what is kept, (1/n) Σ (1 − m_i) ∇²ℓ_i, which is where
the step ends rather than where it starts. Where the loss still has a slope r = ∇L(θ*) at θ*, since
training stopped early, the step holds it: retraining stops as early. Given `slope`, it descends it
as well, and goes towards the minimum without the samples: θ* + H⁻¹ ((1/n) Gᵀ m − r).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fudlr.common.errors import DataError, NumericalError
from fudlr.gradients.store import GradientRows
from fudlr.influence.solvers import Solution, Solve, Status

LARGE_RESIDUAL = 0.1
"""Relative residual of a stopped solve beyond which the update is not the one asked for."""


@dataclass(frozen=True)
class Update:
    """An adapter without the masked samples' effect.

    Attributes:
        delta: The shift, `[d]`.
        theta: The updated parameters, `[d]`.
        solution: The solve behind it, with residual and status.
        relative_shift: ‖delta‖ / ‖θ‖; infinite where θ is 0 and delta is not.
        warnings: What a person should know before using it.
        details: How it came about, for `summary.json`.
    """

    delta: Tensor
    theta: Tensor
    solution: Solution
    relative_shift: float
    warnings: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def removal_update(
    theta: Tensor,
    rows: GradientRows,
    mask: Tensor,
    solve: Solve,
    *,
    n: int | None = None,
    slope: Tensor | None = None,
    lift: Callable[[Tensor], Tensor] | None = None,
) -> Update:
    """Take the effect of the masked samples out of `theta`.

    Args:
        theta: θ*, the trained parameters, `[d]`.
        rows: Gradients at θ* of the samples that `mask` speaks of.
        mask: m `[rows.n]`, boolean or in [0, 1]; 1 forgets a sample.
        solve: H⁻¹ (see `solvers.make_solver`), from the curvature of all training samples.
        n: Training samples, the divisor of the loss; `rows.n` by default, which is wrong where
            `rows` are only a part of them.
        slope: ∇L(θ*) `[d]` with its λ part, to be descended too; held where None.
        lift: From the rows' space `[k, p]` to the adapter's `[k, d]`, where rows are sketches; its
            transpose must have made them, with orthonormal rows (see `store.Space`).

    Raises:
        DataError: Shapes that do not fit, or a mask outside of [0, 1].
        NumericalError: Something is not finite.
    """
    _check_inputs(theta, theta.numel() if lift else rows.d, mask, rows.n)
    weights = mask.to(theta.dtype)[None]
    right = rows.sum(weights) / (rows.n if n is None else n)
    solution = solve(right if slope is None else right - slope)
    shift = lift(solution.x) if lift else solution.x
    return finish(theta, shift[0], solution)


def finish(theta: Tensor, delta: Tensor, solution: Solution) -> Update:
    """The update by `delta` [d]; how far is too far is for those to judge who know θ₀.

    Raises:
        NumericalError: The shift is not finite.
    """
    updated = theta + delta
    if not bool(updated.isfinite().all()):
        raise NumericalError(
            "an adapter was to be updated",
            "the shift is not finite",
            "Look for gradients that are not finite, or raise the damping",
        )
    shift, size = float(delta.norm()), float(theta.norm())
    relative = shift / size if size else math.inf if shift else 0.0
    warnings = list(solution.warnings)
    if solution.status is Status.MAX_STEPS and float(solution.residuals.max()) > LARGE_RESIDUAL:
        warnings.append(solution.message)
    return Update(delta, updated, solution, relative, warnings)


def _check_inputs(theta: Tensor, d: int, mask: Tensor, n: int) -> None:
    if theta.shape != (d,) or mask.shape != (n,):
        raise DataError(
            f"an update needs theta [{d}] and a mask [{n}] to fit the gradients",
            f"theta {tuple(theta.shape)}, mask {tuple(mask.shape)}",
            "Give both for the same samples and adapter as the rows",
        )
    if not bool(theta.isfinite().all()):
        raise NumericalError(
            "an adapter was to be updated",
            "its parameters are not finite",
            "Train it again, or load an undamaged one",
        )
    wide = mask.to(torch.float64)
    if not bool(((wide >= 0) & (wide <= 1)).all()):
        raise DataError(
            "an update removes samples with a mask between 0 and 1",
            f"values from {float(wide.min()):.3g} to {float(wide.max()):.3g}, or NaN",
            "1 forgets a sample, 0 keeps it; signed masks would steer, not remove",
        )
