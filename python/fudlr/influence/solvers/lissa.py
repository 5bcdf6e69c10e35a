"""LiSSA: the Neumann series, for comparison.

    x ← x + (b − (H₀ + damping · I) x) / c,   c above H's largest eigenvalue

(Agarwal, Bullins, Hazan 2017, JMLR 18(116); used by Koh and Liang 2017.) It needs c, here from a
few power iterations, and as many products as the condition number has it, where conjugate gradients
need its root. The products are the whole data's: nothing is sampled, so that the comparison is of
the iteration alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.influence.solvers.base import Product, Solution, Status, check_system

POWER_STEPS = 8
MARGIN = 1.2
"""c over the largest eigenvalue that the power iterations saw; they come to it from below."""


def solve_lissa(
    product: Product, rhs: Tensor, damping: float, *, max_steps: int = 500, tolerance: float = 1e-4
) -> Solution:
    """Solve (H₀ + damping · I) x = b for each row b of `rhs`; arguments as `solve_cg`'s.

    Raises:
        UsageError: No step; a tolerance outside [0, 1).
        DataError, UsageError, NumericalError: As `check_system`.
    """
    check_system(rhs, damping)
    if max_steps < 1 or not 0 <= tolerance < 1:
        raise UsageError(
            "LiSSA needs max_steps ≥ 1 and 0 ≤ tolerance < 1",
            f"max_steps {max_steps}, tolerance {tolerance}",
            "The defaults are 500 and 1e-4",
        )
    norms = rhs.norm(dim=1)
    scale = _largest(product, rhs) * MARGIN + damping
    x = torch.zeros_like(rhs)
    residual, steps, grown = rhs.clone(), 0, False
    while steps < max_steps and bool((residual.norm(dim=1) > tolerance * norms).any()):
        trial = x + residual / scale
        left = rhs - product(trial) - damping * trial
        steps += 1
        grown = not bool((left.norm(dim=1) <= 2 * norms).all())  # NaN counts as grown
        if grown:
            break
        x, residual = trial, left
    sizes = residual.norm(dim=1) / torch.where(norms > 0, norms, torch.ones_like(norms))
    over = Status.NEGATIVE_CURVATURE if grown else Status.MAX_STEPS
    statuses = tuple(Status.CONVERGED if float(s) <= tolerance else over for s in sizes)
    message = (
        "LiSSA diverged: the curvature has eigenvalues below minus the damping, or larger ones "
        "than the power iterations found. Use cg, and raise the damping."
        if grown
        else f"LiSSA took {steps} steps to a relative residual of {float(sizes.max()):.2g}; "
        "conjugate gradients take about the root of that."
    )
    return Solution(x, sizes, steps + POWER_STEPS, statuses, message)


def _largest(product: Product, rhs: Tensor) -> float:
    """About the largest eigenvalue in size of H₀, by power iterations from the data."""
    generator = torch.Generator(device=rhs.device).manual_seed(0)
    v = torch.randn(1, rhs.shape[1], generator=generator, dtype=rhs.dtype, device=rhs.device)
    largest = 0.0
    for _ in range(POWER_STEPS):
        v = v / v.norm()
        v = product(v)
        largest = float(v.norm())
        if not largest:
            break
    return largest
