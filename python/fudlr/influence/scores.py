"""Influence of removing a training sample on metrics.

    s_ij = (1/n) g_iᵀ H⁻¹ ∇F_j

the first-order change of metric F_j when sample i is removed from L(θ) = (1/n) Σ ℓ_i + (λ/2)‖θ −
θ₀‖² (Cook and Weisberg 1982; Koh and Liang 2017, arXiv 1703.04730, whose upweighting has the
opposite sign). Negative is good for a metric that should fall.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fudlr.common.errors import DataError, NumericalError
from fudlr.gradients import GradientMatrix
from fudlr.influence.solvers import Solution, Solve

FAIRNESS, ACCURACY = "the unfairness", "the validation loss"


@dataclass(frozen=True)
class Influence:
    """Influence of removing each sample on each metric.

    Attributes:
        names: The k metrics.
        values: s, `[n, k]`, in the metrics' units.
        solution: H⁻¹ ∇F_j for each metric, with residuals and status.
        warnings: What a person should know before trusting the values.
    """

    names: tuple[str, ...]
    values: Tensor
    solution: Solution
    warnings: list[str] = field(default_factory=list)

    def of(self, name: str) -> Tensor:
        """The column of one metric, `[n]`."""
        return self.values[:, self.names.index(name)]


def influence(
    rows: GradientMatrix,
    gradients: Mapping[str, Tensor],
    solve: Solve,
    *,
    n: int | None = None,
) -> Influence:
    """First-order change of every metric when each sample alone is removed.

    All metrics share one solve with several right-hand sides and one pass over the rows.

    Args:
        rows: Gradients of the samples to score; all training samples, or candidates among them.
        gradients: ∇F `[d]` by metric name.
        solve: H⁻¹ (see `solvers.make_solver`), from the curvature of all training samples.
        n: Training samples, the divisor of the loss; `rows.n` by default, which is wrong where
            `rows` are only a part of them.

    Returns:
        Values `[rows.n, k]` in the order of `gradients`.

    Raises:
        NumericalError: A gradient is not finite, or an influence; the metric is named.
    """
    names = tuple(gradients)
    solution = solve(torch.stack([gradients[name] for name in names]))
    values = rows.dots(solution.x) / (rows.n if n is None else n)
    for column, name in zip(values.T, names, strict=True):
        check_finite(column, f"influence on {name}")
    return Influence(names, values, solution, list(solution.warnings))


def scores(
    s: Tensor,
    a: Tensor,
    lambda_fair: float = 1.0,
    lambda_acc: float = 1.0,
    lambda_spa: float = 0.0,
) -> Tensor:
    """λ_fair · s / std(s) + λ_acc · a / std(a) + λ_spa, `[n]`; std is the population's.

    Args:
        s: Influence of each sample's removal on the unfairness, lower is better, `[n]`.
        a: The same on the validation loss, `[n]`.
        lambda_fair: Weight of the unfairness.
        lambda_acc: Weight of the loss.
        lambda_spa: Price of each removal.

    Raises:
        NumericalError: An influence is not finite (the sample is named), or all are equal.
    """
    if s.dim() != 1 or s.shape != a.shape or s.numel() == 0:
        raise DataError(
            "samples were to be scored by two influences [n], n ≥ 1",
            f"shapes {tuple(s.shape)} and {tuple(a.shape)}",
            "Give both for the same samples",
        )
    parts = []
    for weight, values, metric in ((lambda_fair, s, FAIRNESS), (lambda_acc, a, ACCURACY)):
        if weight > 0:
            check_finite(values, f"influence on {metric}")
            spread = float(values.double().std(correction=0))
            check_spread(spread, float(values.abs().max()), values.dtype, values.numel(), metric)
            parts.append((weight, values, spread))
    return combined(parts, torch.full_like(s, lambda_spa))


def combined(parts: Iterable[tuple[float, Tensor, float]], total: Tensor) -> Tensor:
    """`total` and λ · values / std of each part, `[n]`."""
    for weight, values, spread in parts:
        total = total + weight * (values / spread)
    return total


def check_spread(spread: float, largest: float, dtype: torch.dtype, n: int, metric: str) -> None:
    """Refuse influences that are all the same but for rounding: dividing by their standard
    deviation would rank noise."""
    if spread <= 4 * torch.finfo(dtype).eps * largest:
        raise NumericalError(
            f"samples were to be ranked by their influence on {metric}",
            f"it is the same for all {n} of them (of size {largest:.3g})",
            "Nothing here tells samples apart: choose another metric, or set its λ to 0",
        )


def check_finite(values: Tensor, what: str) -> None:
    """Refuse values `[n]` that are not finite, naming the first sample that has one."""
    broken = (~values.isfinite()).nonzero().flatten().tolist()
    if broken:
        raise NumericalError(
            f"the {what} of {values.numel()} samples was to be used",
            f"it is not finite for {len(broken)} of them, sample {broken[0]} the first",
            "Look for NaN or overflow in that sample's loss, or raise the damping",
        )
