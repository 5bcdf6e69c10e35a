"""Lanczos: one Krylov space answers every damping at once.

    H₀ Q = Q T + β q eᵀ,   x_σ = ‖b‖ Q (T + σ I)⁻¹ e₁   for each damping σ

Shifting H₀ by σ I leaves its Krylov space as it is, so that m products serve all dampings (Lanczos
1950; Frommer and Maass 1999, SIAM J. Sci. Comput. 20(5), on shifted systems). Q is orthogonalised
in full, twice, against loss of orthogonality (Parlett 1998, "The symmetric eigenvalue problem");
that is memory for m vectors a right-hand side. T's eigenvalues show negative curvature.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fudlr.common.errors import NumericalError, UsageError
from fudlr.influence.solvers.base import Product, Solution, Status, check_system


def solve_lanczos(
    product: Product, rhs: Tensor, damping: float, *, max_steps: int = 50, tolerance: float = 1e-4
) -> Solution:
    """Solve (H₀ + damping · I) x = b for each row b of `rhs`; arguments as `solve_cg`'s."""
    return solve_dampings(product, rhs, [damping], max_steps=max_steps, tolerance=tolerance)[0]


def solve_dampings(
    product: Product,
    rhs: Tensor,
    dampings: Sequence[float],
    *,
    max_steps: int = 50,
    tolerance: float = 1e-4,
) -> list[Solution]:
    """Solve (H₀ + σ I) x = b for each row b of `rhs` `[k, d]` and each σ of `dampings`.

    Args:
        product: H₀ v for each row v, without damping.
        rhs: `[k, d]`, float32 or float64.
        dampings: Absolute ones.
        max_steps: Largest dimension of the Krylov spaces, and number of products with each row.
        tolerance: Relative residual that counts as solved.

    Returns:
        A solution for each damping, in their order. `steps` is the shared number of products.

    Raises:
        UsageError: No damping, or no step.
        NumericalError: A product is not finite.
        DataError, UsageError, NumericalError: As `check_system`.
    """
    if max_steps < 1 or not dampings:
        raise UsageError(
            "Lanczos needs at least one step and one damping",
            f"max_steps {max_steps}, {len(dampings)} dampings",
            "The default is 50 steps",
        )
    for damping in dampings:
        check_system(rhs, damping)
    spaces = [_Krylov(product, b, max_steps, tolerance * min(dampings)) for b in rhs]
    return [_solution(spaces, rhs, damping, tolerance) for damping in dampings]


class _Krylov:
    """Q [m, d], T's eigenvalues and -vectors in float64, and the last β, for one b."""

    def __init__(self, product: Product, b: Tensor, steps: int, enough: float) -> None:
        self.norm = float(b.norm())
        self.basis: Tensor = torch.zeros(0, b.shape[0], dtype=b.dtype, device=b.device)
        self.last, self.products = 0.0, 0
        if not self.norm:
            return
        rows, diagonal, off = [b / self.norm], [], []
        for _ in range(min(steps, b.shape[0])):
            applied = product(rows[-1][None])[0]
            self.products += 1
            if not bool(applied.isfinite().all()):
                raise NumericalError(
                    "a Krylov space was to be built",
                    f"the curvature's product {self.products} is not finite",
                    "Likely an overflow in the model: use float32 or float64",
                )
            diagonal.append(float(rows[-1] @ applied))
            basis = torch.stack(rows)
            for _ in range(2):
                applied = applied - (basis @ applied) @ basis
            self.last = float(applied.norm())
            # An invariant subspace holds the solution: nothing is left to add but rounding.
            if self.last <= max(torch.finfo(b.dtype).eps * max(map(abs, diagonal)), 1e-2 * enough):
                break
            off.append(self.last)
            rows.append(applied / self.last)
        m = len(diagonal)
        inner = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        for i, value in enumerate(off[: m - 1]):
            inner[i, i + 1] = inner[i + 1, i] = value
        self.basis = torch.stack(rows[:m])
        self.values, self.vectors = torch.linalg.eigh(inner)

    def solve(self, damping: float) -> tuple[Tensor, float, float]:
        """x, its relative residual, and the smallest damped curvature that was seen."""
        if not self.norm:
            return torch.zeros_like(self.basis.sum(dim=0)), 0.0, damping
        shifted = self.values + damping
        tiny = torch.finfo(torch.float64).eps * float(self.values.abs().max())
        safe = torch.where(shifted.abs() > tiny, shifted, torch.full_like(shifted, torch.inf))
        y = self.vectors @ (self.vectors[0] / safe)
        x = self.norm * (y.to(self.basis) @ self.basis)
        return x, self.last * abs(float(y[-1])), float(shifted.min())


def _solution(spaces: list[_Krylov], rhs: Tensor, damping: float, tolerance: float) -> Solution:
    solved = [space.solve(damping) for space in spaces]
    residuals = torch.tensor([each[1] for each in solved]).to(rhs)
    lowest = min(each[2] for each in solved)
    statuses = tuple(
        Status.NEGATIVE_CURVATURE
        if low <= 0
        else Status.CONVERGED
        if residual <= tolerance
        else Status.MAX_STEPS
        for _, residual, low in solved
    )
    steps = max(space.products for space in spaces)
    message = (
        f"Krylov spaces of {steps} products gave a relative residual of "
        f"{float(residuals.max()):.2g} at a damping of {damping:g}."
    )
    if lowest <= 0:
        message = (
            f"Negative curvature: the smallest damped eigenvalue that was met is {lowest:.3g}, so "
            f"the loss has no minimum there. Raise the damping to more than {damping - lowest:.3g}"
            ", or use ggn or empirical_fisher, which have no negative curvature."
        )
    return Solution(torch.stack([each[0] for each in solved]), residuals, steps, statuses, message)
