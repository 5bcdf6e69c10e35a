"""Influence of removing a training sample on metrics.

    s_ij = (1/n) g_iᵀ H⁻¹ ∇F_j

the first-order change of metric F_j when sample i is removed from L(θ) = (1/n) Σ ℓ_i + (λ/2)‖θ −
θ₀‖² (Cook and Weisberg 1982; Koh and Liang 2017, arXiv 1703.04730, whose upweighting has the
opposite sign). Negative is good for a metric that should fall.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fudlr.common.errors import DataError, NumericalError, UsageError
from fudlr.gradients import GradientMatrix
from fudlr.influence.solvers import Solution, Solve


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
        UsageError: No gradients.
        DataError: A gradient is not of length d.
        NumericalError: A gradient or the solution is not finite; the metric is named.
    """
    names = tuple(gradients)
    _check_gradients(gradients, rows.d)
    solution = solve(torch.stack([gradients[name] for name in names]))
    warnings = list(solution.warnings)
    values = rows.dots(solution.x) / (rows.n if n is None else n)
    for column, name in enumerate(names):
        broken = (~values[:, column].isfinite()).nonzero().flatten().tolist()
        if broken:
            raise NumericalError(
                f"the influence of {rows.n} samples on {name} was to be computed",
                f"it is not finite for {len(broken)} of them, sample {broken[0]} the first",
                "Look for NaN or overflow in that sample's loss, or raise the damping",
            )
    return Influence(names, values, solution, warnings)


def _check_gradients(gradients: Mapping[str, Tensor], d: int) -> None:
    if not gradients:
        raise UsageError(
            "influence on metrics was to be computed",
            "no metric's gradient was given",
            "Name at least one metric",
        )
    for name, gradient in gradients.items():
        if gradient.shape != (d,):
            raise DataError(
                f"the gradient of {name} was to be a vector of the adapter's {d} parameters",
                f"shape {tuple(gradient.shape)}",
                "Compute it with the same engine as the rows",
            )
        if not bool(gradient.isfinite().all()):
            raise NumericalError(
                f"the gradient of {name} was to be used",
                f"{int((~gradient.isfinite()).sum())} of its {d} entries are not finite",
                "Look for a division by zero or a logarithm of zero in the metric's surrogate",
            )


def scores(
    s: Tensor,
    a: Tensor,
    lambda_fair: float = 1.0,
    lambda_acc: float = 1.0,
    lambda_spa: float = 0.0,
    *,
    ids: Sequence[object] | None = None,
) -> Tensor:
    """λ_fair · s / std(s) + λ_acc · a / std(a) + λ_spa, `[n]`; std is the population's.

    Args:
        s: Influence of each sample's removal on the unfairness, lower is better, `[n]`.
        a: The same on the validation loss, `[n]`.
        lambda_fair: Weight of the unfairness.
        lambda_acc: Weight of the loss.
        lambda_spa: Price of each removal.
        ids: What errors call the samples; their numbers by default.

    Raises:
        UsageError: A λ is negative or not finite, or both of the first two are 0.
        NumericalError: An influence is not finite (the sample is named), or all are equal.
    """
    given = {"lambda_fair": lambda_fair, "lambda_acc": lambda_acc, "lambda_spa": lambda_spa}
    for name, value in given.items():
        if not math.isfinite(value) or value < 0:
            raise UsageError(
                f"{name} was to weigh a term of the mask's objective",
                f"{value}",
                "Give a finite number that is not negative",
            )
    if lambda_fair == 0 and lambda_acc == 0:
        raise UsageError(
            "samples were to be scored",
            "lambda_fair and lambda_acc are both 0, so all samples score the same",
            "Raise one of them",
        )
    if s.dim() != 1 or s.shape != a.shape or s.numel() == 0:
        raise DataError(
            "samples were to be scored by two influences [n], n ≥ 1",
            f"shapes {tuple(s.shape)} and {tuple(a.shape)}",
            "Give both for the same samples",
        )
    total = torch.full_like(s, lambda_spa)
    for weight, values, metric in (
        (lambda_fair, s, "the unfairness"),
        (lambda_acc, a, "the validation loss"),
    ):
        if weight > 0:
            total = total + weight * _standardised(values, metric, ids)
    return total


def _standardised(values: Tensor, metric: str, ids: Sequence[object] | None) -> Tensor:
    check_finite(values, f"influence on {metric}", ids)
    spread = values.std(correction=0)
    # Constant up to rounding: dividing by it would rank noise.
    if float(spread) <= 4 * torch.finfo(values.dtype).eps * float(values.abs().max()):
        raise NumericalError(
            f"samples were to be ranked by their influence on {metric}",
            f"it is the same for all {values.numel()} of them ({float(values[0]):.3g})",
            "Nothing here tells samples apart: choose another metric, or set its λ to 0",
        )
    return values / spread


def check_finite(values: Tensor, what: str, ids: Sequence[object] | None) -> None:
    """Refuse values `[n]` that are not finite, naming the first sample that has one."""
    broken = (~values.isfinite()).nonzero().flatten().tolist()
    if broken:
        first = ids[broken[0]] if ids is not None else broken[0]
        raise NumericalError(
            f"the {what} of {values.numel()} samples was to be used",
            f"it is not finite for {len(broken)} of them, sample {first} the first",
            "Look for NaN or overflow in that sample's loss, or raise the damping",
        )
