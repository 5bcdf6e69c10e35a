"""Newton's method on the loss without the masked samples, from a closed form on.

    θ ← θ − α H(θ)⁻¹ ∇L_1(θ),   α = 1, ½, ¼, … until L_1 has fallen enough

L_1 and its gradient are computed anew on what is kept (see `update.kept`); H is the kept samples'
curvature, at θ where the curvature goes through the model, at θ* where it is of stored gradients.
α is Armijo's rule (1966) on the training loss without the samples: it makes the step safe, and has
no say of the metric. A solve that meets negative curvature has stopped with a direction of descent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from torch import Tensor

from fudlr.influence.solvers import Solve
from fudlr.influence.update.kept import KeptLoss
from fudlr.influence.update.one_step import Update, finish

HALVINGS = 6
SUFFICIENT = 1e-4
"""Armijo's share of the predicted fall that a step must reach."""


@dataclass(frozen=True)
class NewtonStep:
    """One step: the gradient's norm and L_1 (up to a constant) before it, and α; 0 if it failed."""

    gradient: float
    value: float
    alpha: float


def newton_update(
    first: Update,
    kept: KeptLoss,
    solve_at: Callable[[Tensor], Solve],
    steps: int,
) -> Update:
    """Go `steps` Newton steps on from the update `first`.

    Args:
        first: Where to start; a closed form.
        kept: The loss without the masked samples.
        solve_at: θ `[d]` to H⁻¹ there; θ is loaded into the model while it solves.
        steps: How many; each costs a pass over the samples and a solve.

    Raises:
        NumericalError: As `removal_update`.
    """
    theta, solution, taken = first.theta, first.solution, []
    said: list[str] = []
    value, gradient = kept.value_and_gradient(theta)
    for number in range(steps):
        kept.engine.load(theta)
        try:
            solution = solve_at(theta)(-gradient[None])
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
        taken.append(NewtonStep(norm, value, alpha))
        if slope >= 0 or alpha == 0:
            # At the minimum, to rounding, there is nothing left to fall.
            if norm > 1e-3 * taken[0].gradient or number == 0:
                said.append(
                    f"Newton step {number + 1} of {steps} found no way down from a gradient of "
                    f"{norm:.2g}: the update is that of the steps before it. Likely a curvature "
                    "far from the loss's own; use hessian, or raise the damping."
                )
            break
        theta, value, gradient = trial, found, new
    update = finish(kept.theta, theta - kept.theta, solution)
    details = {"newton": [asdict(step) for step in taken]}
    return replace(update, warnings=[*update.warnings, *said], details=details)
