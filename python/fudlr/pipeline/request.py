"""One request: from metric gradients to scores, mask and updated parameters.

    s_i = (1/n) g_iᵀ H⁻¹ ∇F        first-order change of F when sample i is removed
    m   = the lowest `budget` share of λ_fair·s/std(s) + λ_acc·a/std(a) + λ_spa below 0
    θ   = θ* + (1/n) H⁻¹ Gᵀ m

The curvature is that of all training samples, and is asked for through `solve` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fudlr.common.errors import NumericalError
from fudlr.config import DebiasConfig
from fudlr.gradients.metric import VALIDATION_LOSS, MetricGradient
from fudlr.gradients.store import Space
from fudlr.influence.mask import Mask, gradient_descent_mask, scores, threshold_mask
from fudlr.influence.scores import Influence, influence
from fudlr.influence.solvers import Solve
from fudlr.influence.update import Update
from fudlr.metrics import Objective


@dataclass(frozen=True)
class Scored:
    """How much each of n training samples matters.

    Attributes:
        influence: On every metric asked for, the validation loss last where it was, [n, k]; NaN
            for samples that have no row.
        fairness: On the objective, normalised and turned so that lower is better, [n].
        accuracy: On the validation loss, [n]; None where it has no weight and was not asked for.
        score: What the mask is thresholded on, [n]; above 0 for samples that have no row.
    """

    influence: Influence
    fairness: Tensor
    accuracy: Tensor | None
    score: Tensor

    def predicted(self, mask: Tensor) -> dict[str, float]:
        """First-order change of every metric's surrogate when the masked samples are removed."""
        values = self.influence.values.nan_to_num()
        return dict(zip(self.influence.names, (mask.to(values) @ values).tolist(), strict=True))


@dataclass(frozen=True)
class Answer:
    """Scores, the samples to remove [n], the adapter without them, and how the mask was found."""

    scored: Scored
    mask: Tensor
    update: Update
    warnings: list[str]
    chosen: Mask


def score_samples(
    space: Space,
    gradients: Mapping[str, MetricGradient],
    objective: Objective,
    solve: Solve,
    config: DebiasConfig,
    *,
    ids: Sequence[object] | None = None,
) -> Scored:
    """Influence of every sample, and the score that weighs fairness against accuracy.

    Args:
        space: The training samples' gradients, whole or as sketches.
        gradients: Of every metric of the objective, and of the validation loss where it has a
            weight; others are scored too, for the reader.
        objective: What should fall.
        solve: H⁻¹ in that space.
        config: The λ's.
        ids: What errors call the samples.
    """
    found = influences(space, gradients, solve)
    return weigh_rows(space, found, gradients, objective, config, ids=ids)


def influences(space: Space, gradients: Mapping[str, MetricGradient], solve: Solve) -> Influence:
    """Influence of the rows' samples on every metric, by one solve: what no λ takes part in."""
    names = list(gradients)
    projected = space.project(torch.stack([gradients[name].gradient for name in names]))
    return influence(space.rows, dict(zip(names, projected, strict=True)), solve, n=space.total)


def weigh_rows(
    space: Space,
    found: Influence,
    gradients: Mapping[str, MetricGradient],
    objective: Objective,
    config: DebiasConfig,
    *,
    ids: Sequence[object] | None = None,
) -> Scored:
    """The score of all n samples from the influences of those that have a row."""
    scored = weigh(found, gradients, objective, config, ids=ids)
    if space.index is None:
        return scored
    whole = replace(found, values=space.spread(found.values, torch.nan))
    accuracy = None if scored.accuracy is None else space.spread(scored.accuracy, torch.nan)
    return Scored(
        whole,
        space.spread(scored.fairness, torch.nan),
        accuracy,
        space.spread(scored.score, float(scored.score.abs().max()) + 1),
    )


def weigh(
    found: Influence,
    gradients: Mapping[str, MetricGradient],
    objective: Objective,
    config: DebiasConfig,
    *,
    ids: Sequence[object] | None = None,
) -> Scored:
    """The score of every sample for the λ's of `config`, from influences that are known."""
    start = torch.tensor([gradients[name].value for name in objective.names])
    columns = torch.stack([found.of(name) for name in objective.names], 1)
    fairness = columns @ objective.coefficients(start).to(columns)
    accuracy = found.of(VALIDATION_LOSS) if VALIDATION_LOSS in found.names else None
    lambdas = (config.lambda_fair, config.lambda_acc, config.lambda_spa)
    # Without a weight it takes no part, whatever stands in its place.
    other = torch.zeros_like(fairness) if accuracy is None else accuracy
    return Scored(found, fairness, accuracy, scores(fairness, other, *lambdas, ids=ids))


def choose_mask(score: Tensor, config: DebiasConfig) -> Mask:
    """The samples to remove [n] by the options: the threshold rule, or descent."""
    if config.mask == "descent":
        return gradient_descent_mask(
            score, config.budget, steps=config.mask_steps, learning_rate=config.mask_rate
        )
    return threshold_mask(score, config.budget)


def answer(scored: Scored, chosen: Mask, remove: Callable[[Tensor], Update]) -> Answer:
    """Let `remove` take what the mask says out of the adapter."""
    update = remove(chosen.remove)
    found = [*scored.influence.warnings, *chosen.warnings, *update.warnings]
    return Answer(scored, chosen.remove, update, list(dict.fromkeys(found)), chosen)


STATIONARY = 0.1
"""Share of the slope that is left at θ* up to which training counts as converged. A training of
twenty epochs with λ = 0.1 leaves 0.05 to 0.06, the demo's own, stopped early, about 0.4."""
EARLY = 3.0
"""Times λ, the damping where training stopped early."""


def stationarity(l2: float, slope: Tensor, theta: Tensor, start: Tensor) -> float:
    """|ḡ + λ(θ* − θ₀)| / (|ḡ| + λ|θ* − θ₀|): 0 at an optimum, 1 before the first step.

    How far the mean gradient ḡ [d] and λ's pull cancel, as they do where ∇L = 0.
    """
    pull = l2 * (theta - start)
    whole = float(slope.norm() + pull.norm())
    return float((slope + pull).norm()) / whole if whole else 0.0


def choose_damping(l2: float, slope: Tensor, theta: Tensor, start: Tensor) -> float:
    """A damping that a user need not think about: λ at a stationary point, 3 λ short of one.

    Where training stopped early the loss still has a slope, and its curvature changes along the
    way that retraining goes; docs/method.md says how the rule was tested.

    Args:
        l2: λ of the training.
        slope: ḡ, the training samples' mean gradient [d].
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
    return l2 if stationarity(l2, slope, theta, start) <= STATIONARY else EARLY * l2
