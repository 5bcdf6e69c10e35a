"""One request: from metric gradients to scores, mask and updated parameters.

    s_i = (1/n) g_iᵀ H⁻¹ ∇F        first-order change of F when sample i is removed
    m   = the lowest `budget` share of λ_fair·s/std(s) + λ_acc·a/std(a) + λ_spa below 0
    θ   = θ* + (1/n) H⁻¹ Gᵀ m

The curvature is that of all training samples, and is asked for through `solve` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fudlr.config import DebiasConfig
from fudlr.errors import NumericalError
from fudlr.influence import VALIDATION_LOSS, Influence, MetricGradient, influence
from fudlr.mask import scores, threshold_mask
from fudlr.metrics import Objective
from fudlr.solvers import Solve
from fudlr.store import GradientRows
from fudlr.update import Update, removal_update


@dataclass(frozen=True)
class Scored:
    """How much each of n training samples matters.

    Attributes:
        influence: On every metric asked for, the validation loss last, [n, k].
        fairness: On the objective, normalised and turned so that lower is better, [n].
        accuracy: On the validation loss, [n].
        score: What the mask is thresholded on, [n]; above 0 for what is no candidate.
    """

    influence: Influence
    fairness: Tensor
    accuracy: Tensor
    score: Tensor

    def predicted(self, mask: Tensor) -> dict[str, float]:
        """First-order change of every metric's surrogate when the masked samples are removed."""
        change = mask.to(self.influence.values) @ self.influence.values
        return dict(zip(self.influence.names, change.tolist(), strict=True))


@dataclass(frozen=True)
class Answer:
    """Scores, the samples to remove [n], and the adapter without them."""

    scored: Scored
    mask: Tensor
    update: Update
    warnings: list[str]


def score_samples(
    rows: GradientRows,
    gradients: Mapping[str, MetricGradient],
    objective: Objective,
    solve: Solve,
    config: DebiasConfig,
    *,
    candidates: Tensor | None = None,
    ids: Sequence[object] | None = None,
) -> Scored:
    """Influence of every sample, and the score that weighs fairness against accuracy.

    Args:
        rows: The training samples' gradients.
        gradients: Of every metric of the objective and of the validation loss; others are scored
            too, for the reader.
        objective: What should fall.
        solve: H⁻¹.
        config: The λ's.
        candidates: Indices of the samples that may be removed; all where None.
        ids: What errors call the samples.
    """
    found = influence(rows, {name: g.gradient for name, g in gradients.items()}, solve)
    start = torch.tensor([gradients[name].value for name in objective.names])
    columns = torch.stack([found.of(name) for name in objective.names], 1)
    fairness = columns @ objective.coefficients(start).to(columns)
    accuracy = found.of(VALIDATION_LOSS)
    lambdas = (config.lambda_fair, config.lambda_acc, config.lambda_spa)
    score = scores(fairness, accuracy, *lambdas, ids=ids)
    if candidates is not None:
        allowed = torch.zeros(len(score), dtype=torch.bool)
        allowed[candidates] = True
        score = torch.where(allowed, score, score.abs() + 1)
    return Scored(found, fairness, accuracy, score)


def answer(
    rows: GradientRows,
    scored: Scored,
    theta: Tensor,
    solve: Solve,
    budget: float,
    *,
    ids: Sequence[object] | None = None,
    remove: Callable[[Tensor], Update] | None = None,
) -> Answer:
    """Choose the mask under `budget` and take the masked samples out of `theta` [d].

    `remove` takes out what a mask [n] says; without it, one step with `solve` does.
    """
    chosen = threshold_mask(scored.score, budget, ids=ids)
    if remove is not None:
        update = remove(chosen.remove)
    else:
        update = removal_update(theta, rows, chosen.remove, solve)
    found = [*scored.influence.warnings, *chosen.warnings, *update.warnings]
    return Answer(scored, chosen.remove, update, list(dict.fromkeys(found)))


def choose_damping(l2: float, rows: GradientRows, theta: Tensor, start: Tensor) -> float:
    """A damping that a user need not think about: λ at a stationary point, 3 λ short of one.

    Where training stopped early the loss still has a slope, and its curvature changes along the
    way that retraining goes; docs/method.md has the measurements. Whether it did is seen from how
    far the mean gradient and λ's pull cancel: |ḡ + λ(θ* − θ₀)| against |ḡ| + λ|θ* − θ₀|.

    Args:
        l2: λ of the training.
        rows: The training samples' gradients.
        theta: θ* [d].
        start: θ₀ [d].

    Raises:
        NumericalError: λ is 0, so that nothing sets the scale.
    """
    if l2 == 0:
        raise NumericalError(
            "a damping was to be chosen",
            "the training had no λ (train.l2 is 0), so that nothing sets its scale",
            "Give one with --damping; 0.01 to 0.1 suit a mean loss in nats",
        )
    slope = rows.sum(torch.full((1, rows.n), 1 / rows.n).to(theta))[0]
    pull = l2 * (theta - start)
    stationary = float((slope + pull).norm()) <= 0.05 * float(slope.norm() + pull.norm())
    return l2 if stationary else 3 * l2
