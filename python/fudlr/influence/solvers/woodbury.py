"""Exact solve with the empirical Fisher through the n × n matrix of the samples' products.

    (GᵀG/n + damping · I)⁻¹ b = (b − Gᵀ (n · damping · I + G Gᵀ)⁻¹ G b) / damping

(Woodbury 1950; Hager 1989, SIAM Review 31(2).) For few samples: n² d operations and n² numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.common.errors import NumericalError, UsageError
from fudlr.influence.solvers.base import Solution, Status, check_system

LARGEST_N = 8192
"""Rows beyond which the n × n matrix (0.5 GB) and its factor cost more than any CG."""


def solve_woodbury(
    matrix: Tensor,
    rhs: Tensor,
    damping: float,
    *,
    weights: Tensor | None = None,
    divisor: int | None = None,
) -> Solution:
    """Solve (Gᵀ diag(w) G / divisor + damping · I) x = b for each row b of `rhs`.

    The n × n part is formed and factored in float64, since its condition is that of the whole
    system and it is small.

    Args:
        matrix: G, `[n, d]`, at most `LARGEST_N` rows.
        rhs: `[k, d]`, float32 or float64.
        damping: Absolute, above 0; added here and nowhere else.
        weights: w ≥ 0, `[n]`; ones by default.
        divisor: n of the mean; the number of rows by default.

    Returns:
        The solution, with residuals computed anew.

    Raises:
        UsageError: Too many rows, a damping of 0, or negative weights.
        NumericalError: The factorisation failed, or something was not finite.
    """
    check_system(rhs, damping)
    n = matrix.shape[0]
    _check_options(n, damping, weights)
    rows = matrix if weights is None else matrix * weights.to(matrix).sqrt()[:, None]
    mean = divisor or n
    gram = _gram(rows)
    gram.diagonal().add_(mean * damping)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed) or not bool(factor.isfinite().all()):
        raise NumericalError(
            "a system was to be solved through the samples' products",
            "their damped matrix has no Cholesky factor",
            f"Look for gradients that are not finite, or raise the damping ({damping:g})",
        )
    right = rhs.double()
    inner = torch.cholesky_solve(_wide(rows, right.T), factor)
    x = (right - _tall(rows, inner).T) / damping
    applied = _tall(rows, _wide(rows, x.T)).T / mean + damping * x
    norms = right.norm(dim=1)
    residuals = (right - applied).norm(dim=1) / norms.where(norms > 0, torch.ones_like(norms))
    message = f"Solved directly to a relative residual of {float(residuals.max()):.2g}."
    statuses = (Status.CONVERGED,) * rhs.shape[0]
    return Solution(x.to(rhs.dtype), residuals.to(rhs.dtype), 1, statuses, message)


def _check_options(n: int, damping: float, weights: Tensor | None) -> None:
    if n > LARGEST_N:
        raise UsageError(
            f"woodbury solves with at most {LARGEST_N} samples",
            f"{n} samples, whose products are {n * n * 8 / 2**30:.1f} GB",
            "Use the cg solver, which needs no such matrix",
        )
    if damping == 0:
        raise UsageError(
            "woodbury needs a damping above 0",
            "0: the empirical Fisher of n samples has rank n at most",
            "Give the λ of the training loss",
        )
    if weights is not None and bool((weights < 0).any()):
        raise UsageError(
            "woodbury needs weights that are not negative",
            f"{float(weights.min())}",
            "Weights are 1 for a kept sample and 0 for a removed one",
        )


_COLUMNS = 4096  # columns widened to float64 at a time, so that G is never held twice


def _gram(rows: Tensor) -> Tensor:
    gram = torch.zeros(rows.shape[0], rows.shape[0], dtype=torch.float64, device=rows.device)
    for part in rows.split(_COLUMNS, dim=1):
        wide = part.double()
        gram.addmm_(wide, wide.T)
    return gram


def _wide(rows: Tensor, right: Tensor) -> Tensor:
    """G right in float64, `[n, k]`, for `right` `[d, k]`."""
    parts = zip(rows.split(_COLUMNS, dim=1), right.split(_COLUMNS), strict=True)
    return torch.stack([part.double() @ piece for part, piece in parts]).sum(dim=0)


def _tall(rows: Tensor, left: Tensor) -> Tensor:
    """Gᵀ left in float64, `[d, k]`, for `left` `[n, k]`."""
    return torch.cat([part.double().T @ left for part in rows.split(_COLUMNS, dim=1)])
