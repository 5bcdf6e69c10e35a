"""Updates that take masked samples out of an adapter: the closed form, and Newton steps from it.

    θ(m) = θ* + (1/n) H⁻¹ Gᵀ m

is one Newton step from the optimum of L towards that of L with weights 1 − m and the same divisor n
(Guo et al. 2020, "Certified data removal", arXiv 1911.03030, for linear models; FUDLR, arXiv
2601.17492). The step is a whole one: a longer one would be steering, not removal. Where training
stopped early, the gradient that it left at θ* is held: retraining stops as early.

Newton steps go on with gradients computed anew on what is kept,

    θ ← θ − α H(θ)⁻¹ ∇L₁(θ),   L₁(θ) = (1/n) Σ (1 − m_i) ℓ_i(θ) + (λ/2)‖θ − θ₀‖² − ⟨∇L(θ*), θ⟩,

the last term being what holds that gradient. α is Armijo's rule (1966) on L₁: 1, ½, ¼, … until it
has fallen enough, so that a step is safe and has no say of the metric. H is the kept samples'
curvature, at θ where it goes through the model, at θ* where it is of stored gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fudlr.common.errors import DataError, NumericalError
from fudlr.gradients import GradientMatrix
from fudlr.influence.curvature import Parts
from fudlr.influence.solvers import Solution, Solve, Status
from fudlr_ext.reducers import Sums

LARGE_RESIDUAL = 0.1
"""Relative residual of a stopped solve beyond which the update is not the one asked for."""
HALVINGS = 6
SUFFICIENT = 1e-4
"""Armijo's share of the predicted fall that a Newton step must reach."""


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
    rows: GradientMatrix,
    mask: Tensor,
    solve: Solve,
    *,
    n: int | None = None,
    lift: Callable[[Tensor], Tensor] | None = None,
) -> Update:
    """Take the effect of the masked samples out of `theta` in closed form.

    Args:
        theta: θ*, the trained parameters, `[d]`.
        rows: Gradients at θ* of the samples that `mask` refers to.
        mask: m `[rows.n]`, boolean or in [0, 1]; 1 forgets a sample.
        solve: H⁻¹ (see `solvers.make_solver`), from the curvature of all training samples.
        n: Training samples, the divisor of the loss; `rows.n` by default, which is wrong where
            `rows` are only a part of them.
        lift: From the rows' space `[k, p]` to the adapter's `[k, d]`, where rows are sketches; its
            transpose must have made them, with orthonormal rows (see `store.Space`).

    Raises:
        DataError: Shapes that do not fit, or a mask outside of [0, 1].
        NumericalError: Something is not finite.
    """
    wide = mask.to(torch.float64)
    if not bool(((wide >= 0) & (wide <= 1)).all()):
        raise DataError(
            "an update removes samples with a mask between 0 and 1",
            f"values from {float(wide.min()):.3g} to {float(wide.max()):.3g}, or NaN",
            "1 forgets a sample, 0 keeps it; signed masks would steer, not remove",
        )
    solution = solve(rows.sum(mask.to(theta.dtype)[None]) / (rows.n if n is None else n))
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


class KeptLoss:
    """L₁ and its gradient anywhere.

    Args:
        parts: The training samples, and their gradients at θ*; θ* is loaded into the engine again
            after each call.
        mask: m `[n]`.
        theta, start: θ* and θ₀ `[d]`.
        l2: λ.
    """

    def __init__(self, parts: Parts, mask: Tensor, theta: Tensor, start: Tensor, l2: float) -> None:
        self.theta, self._start, self._l2 = theta, start, l2
        self.engine, (*self._face, self._batches) = parts.engine, parts.face(None)
        n = parts.rows.n
        self._weights = (1 - mask.to(theta)) / n
        everything = torch.full((1, n), 1 / n, dtype=theta.dtype, device=theta.device)
        self._held = parts.rows.sum(everything)[0] + l2 * (theta - start)  # ∇L(θ*)

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """L₁ up to a constant, and its gradient `[d]`, at `theta`; one pass over the batches."""
        self.engine.load(theta)
        value, gradient = 0.0, torch.zeros_like(theta, device=self.engine.device)
        try:
            for batch, rows in self._batches:
                weights = self._weights[rows]
                sums = Sums(weights[None].contiguous())
                losses = self.engine.reduce(*self._face, batch, [sums])
                value += float(losses.double().cpu() @ weights.double())
                gradient += sums.result()[0]
        finally:
            self.engine.load(self.theta)
        from_start = theta - self._start
        value += self._l2 / 2 * float(from_start.double().square().sum())
        value -= float(self._held.double() @ (theta - self.theta).double())
        return value, gradient.to(theta.device) + self._l2 * from_start - self._held


def newton_update(first: Update, kept: KeptLoss, solve: Callable[[], Solve], steps: int) -> Update:
    """Go `steps` Newton steps on from the update `first`.

    Args:
        first: Where to start; a closed form.
        kept: The loss without the masked samples.
        solve: Makes H⁻¹ of the kept samples at the parameters that the model holds.
        steps: How many; each costs a pass over the samples and a solve.

    Returns:
        The update; its details have of each step the gradient's norm and L₁ (up to a constant)
        before it, and α, which is 0 if it failed.

    Raises:
        NumericalError: As `removal_update`.
    """
    theta, solution, said = first.theta, first.solution, []
    taken: list[dict[str, float]] = []
    value, gradient = kept.value_and_gradient(theta)
    for number in range(steps):
        kept.engine.load(theta)
        try:
            solution = solve()(-gradient[None])
        finally:
            kept.engine.load(kept.theta)
        direction = solution.x[0]
        slope = float(gradient.double() @ direction.double())
        norm, alpha = float(gradient.norm()), 1.0
        for _ in range(HALVINGS):
            trial = theta + alpha * direction
            found, new = kept.value_and_gradient(trial)
            if found <= value + SUFFICIENT * alpha * slope:
                break
            alpha /= 2
        else:
            alpha = 0.0
        taken.append({"gradient": norm, "value": value, "alpha": alpha})
        if slope >= 0 or alpha == 0:
            # At the minimum, to rounding, there is nothing left to fall.
            if norm > 1e-3 * taken[0]["gradient"] or number == 0:
                said.append(
                    f"Newton step {number + 1} of {steps} found no descent from a gradient of "
                    f"{norm:.2g}: the update is that of the steps before it. Likely a curvature "
                    "far from the loss's own; use hessian, or raise the damping."
                )
            break
        theta, value, gradient = trial, found, new
    update = finish(kept.theta, theta - kept.theta, solution)
    return replace(update, warnings=[*update.warnings, *said], details={"newton": taken})
