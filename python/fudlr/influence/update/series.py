"""Removal to higher order, from derivatives at θ* alone.

Let θ(t) be where ∇L_t = 0 (see `update.kept`): θ(0) = θ*, and θ(1) is retraining's end. Its Taylor
series θ* + Σ_k c_k is found order by order (Basu, You, Feizi 2020, "On second-order group
influence functions", ICML, has the second; the scheme is that of the implicit function theorem):

    c_k = −H⁻¹ R_k,   R_k = Σ_{j=1}^{k} (1/j!) ∂ʲ/∂tʲ ∇L_t(θ* + Σ_{i<k} c_i tⁱ) at t = 0

c_1 is the one-step update. c_2 holds both what the removed samples' curvature was,
−(1/n) Σ m_i ∇²ℓ_i, and how the kept curvature changes along the way, ∇³L[c_1, c_1]. All solves are
with H, which is positive definite at an optimum, while the kept samples' curvature at θ* need not
be. Summing over j, and not j = k alone, gives the same with the exact Hessian, and corrects the
lower orders' errors where H is another curvature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.influence.solvers import Solve
from fudlr.influence.update.kept import KeptLoss
from fudlr.influence.update.one_step import Update, finish


def series_update(first: Update, kept: KeptLoss, solve: Solve, order: int = 3) -> Update:
    """Continue the one-step update `first` to `order`.

    Args:
        first: From `removal_update`, with the curvature of all samples at θ*.
        kept: The loss without the masked samples.
        solve: H⁻¹, the one behind `first`.
        order: 2 needs third derivatives of the loss, 3 fourth ones.

    Raises:
        UsageError: An order below 1.
        NumericalError: As `removal_update`.
    """
    if order < 1:
        raise UsageError(
            "a removal was to be computed as a series",
            f"to order {order}",
            "Give 1 (one step), 2 or 3; each order costs about twice the one before",
        )
    path: list[Tensor] = [first.delta]
    solution = first.solution
    for k in range(2, order + 1):
        solution = solve(-kept.taylor_gradient(torch.stack(path), k)[None])
        path.append(solution.x[0])
    return finish(kept.theta, torch.stack(path).sum(dim=0), solution)
