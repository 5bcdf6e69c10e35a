"""Influence of removing a training sample on metrics, and the metrics' gradients that it needs.

    s_ij = (1/n) g_iᵀ H⁻¹ ∇F_j

the first-order change of metric F_j when sample i is removed from L(θ) = (1/n) Σ ℓ_i + (λ/2)‖θ −
θ₀‖² (Cook and Weisberg 1982; Koh and Liang 2017, arXiv 1703.04730, whose upweighting has the
opposite sign). Negative is good for a metric that should fall.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fudlr.data import Samples
from fudlr.errors import DataError, NumericalError, UsageError
from fudlr.recommenders import Recommender
from fudlr.solvers import Solution, Solve
from fudlr.store import GradientRows

VALIDATION_LOSS = "val_loss"
"""Name of the mean loss of the prompts among the gradients."""

Progress = Callable[[int, int], None]


class Surrogate(Protocol):
    """A metric as far as its gradient goes."""

    @property
    def name(self) -> str:
        """Key of the metric in results."""
        ...

    def surrogate(self, scores: Tensor, side: Any) -> Tensor:
        """Differentiable value, a scalar, from scores `[n, M]`."""
        ...


class VJPEngine(Protocol):
    """What metric gradients ask of an engine; `fudlr_ext.Engine` has it."""

    def vjp(self, forward: Callable[[nn.Module, Any], Any], batch: Any, cotangents: Any) -> Tensor:
        """Gradients `[k, d]` of whatever hangs on the outputs with k `cotangents` each."""
        ...


class MetricGradient(NamedTuple):
    """A metric's surrogate value, and its gradient over the adapter, `[d]`."""

    value: float
    gradient: Tensor


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
    rows: GradientRows,
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
    for name in names:
        if not gradients[name].count_nonzero():
            warnings.append(
                f"{name} has no gradient at this adapter, so no sample has influence on it: its "
                "value does not depend on the adapter, or every score is saturated."
            )
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


def metric_gradients(
    recommender: Recommender,
    engine: VJPEngine,
    samples: Samples,
    side: Any,
    metrics: Sequence[Surrogate],
    *,
    validation_loss: bool = True,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> dict[str, MetricGradient]:
    """Values and gradients of metrics over many prompts, and of the prompts' mean loss.

    One scoring pass gives the scores of all prompts; autograd on the metrics alone gives
    ∂F_j/∂scores; one pass of the engine, batch by batch, takes all of them, and the loss's
    cotangents 1/n beside them, through the model together. Exact for metrics that couple all
    prompts, at the memory of the scores times the number of metrics.

    Args:
        recommender: Gives batches, outputs, scores and losses.
        engine: Takes cotangents through the model.
        samples: The n prompts.
        side: What the metrics know of these prompts, row by row.
        metrics: Each with a `name` and a `surrogate`.
        validation_loss: Whether the mean loss joins them, as `VALIDATION_LOSS`.
        batch_size: Prompts a batch.
        progress: Told the prompts done and the prompts in all, in the engine's pass.

    Raises:
        UsageError: Nothing to differentiate, or a name that occurs twice.
        DataError: No prompts.
        NumericalError: Scores, a metric's value or its gradient are not finite.
    """
    names = [metric.name for metric in metrics] + [VALIDATION_LOSS] * validation_loss
    _check_request(names, len(samples))
    scores, losses = recommender.evaluate(samples, batch_size)
    values, through_scores = _surrogates(metrics, scores, side)
    n, k = len(samples), len(names)
    through_loss = losses.new_zeros(k, n)
    if validation_loss:
        values.append(float(losses.mean()))
        through_loss[-1] = 1 / n
        through_scores.append(torch.zeros_like(scores))
    cotangents = torch.stack(through_scores)

    def scores_and_loss(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        outputs = recommender.forward(model, batch)
        item_scores = recommender.item_scores(outputs, batch)
        loss = recommender.loss(outputs, batch)
        return item_scores.to(cotangents.dtype), loss.to(through_loss.dtype)

    total: Tensor | None = None
    start = 0
    for batch in recommender.batches(samples, batch_size, scoring=True):
        part = slice(start, min(start + batch_size, n))
        pulled = engine.vjp(scores_and_loss, batch, (cotangents[:, part], through_loss[:, part]))
        total = pulled if total is None else total + pulled
        start = part.stop
        if progress is not None:
            progress(start, n)
    assert total is not None  # there is at least one prompt
    found = {
        name: MetricGradient(value, gradient)
        for name, value, gradient in zip(names, values, total, strict=True)
    }
    _check_gradients({name: each.gradient for name, each in found.items()}, total.shape[1])
    return found


def _surrogates(
    metrics: Sequence[Surrogate], scores: Tensor, side: Any
) -> tuple[list[float], list[Tensor]]:
    """Value and ∂value/∂scores `[n, M]` of every metric."""
    if not bool(scores.isfinite().all()):
        row = int((~scores.isfinite().all(dim=1)).nonzero()[0])
        raise NumericalError(
            "prompts were to be scored",
            f"the scores of prompt {row} are not finite",
            "Look for NaN in the model's weights, or use float32",
        )
    values, cotangents = [], []
    for metric in metrics:
        leaf = scores.detach().requires_grad_()
        value = metric.surrogate(leaf, side)
        if value.dim() or not value.requires_grad or not bool(value.isfinite()):
            raise NumericalError(
                f"the gradient of {metric.name} was to be computed",
                f"its surrogate is not a finite, differentiable scalar (it gave {value})",
                "Write the surrogate in differentiable torch operations on the scores",
            )
        (cotangent,) = torch.autograd.grad(value, leaf)
        values.append(float(value.detach()))
        cotangents.append(cotangent)
    return values, cotangents


def _check_request(names: Sequence[str], n: int) -> None:
    if not names or len(set(names)) < len(names):
        raise UsageError(
            "metrics were to be differentiated",
            f"{list(names)}: none, or one of them twice",
            "Name at least one metric, and each once",
        )
    if n == 0:
        raise DataError(
            f"the gradients of {', '.join(names)} were to be computed",
            "there are no prompts",
            "Give at least one validation prompt",
        )


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
