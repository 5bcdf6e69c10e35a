"""One request: from metric gradients to scores, mask and updated parameters.

    s_i = (1/n) g_iᵀ H⁻¹ ∇F        first-order change of F when sample i is removed
    m   = the lowest `budget` share of λ_fair·s/std(s) + λ_acc·a/std(a) + λ_spa below 0
    θ   = θ* + (1/n) H⁻¹ Gᵀ m

Rows, metric gradients and one solve make a `Solved`; λ's, budgets, masks and updates follow from it
as often as wanted: that is all that sweeps, groups, held-out users and the trade-off curve do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fudlr.config import DebiasConfig
from fudlr.gradients import Space
from fudlr.gradients.metric import VALIDATION_LOSS, MetricGradient
from fudlr.influence.mask import Mask, gradient_descent_mask, threshold_mask
from fudlr.influence.scores import Influence, influence, scores
from fudlr.influence.solvers import Solve
from fudlr.influence.update import Update
from fudlr.metrics import Objective
from fudlr.pipeline.evidence import Evidence, gather, solvers
from fudlr.pipeline.plan import Plan

Gradients = Mapping[str, MetricGradient]
"""By metric name; the validation loss's among them where it has a weight."""


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


@dataclass(frozen=True)
class Solved:
    """What all masks of a request follow from.

    Attributes:
        plan: What was asked.
        evidence: Rows and H⁻¹.
        gradients: Of the metrics.
        influence: Of the rows' samples on them.
    """

    plan: Plan
    evidence: Evidence
    gradients: Gradients
    influence: Influence

    def scored(
        self, config: DebiasConfig | None = None, objective: Objective | None = None
    ) -> Scored:
        """The score of every sample, for other λ's or another objective where given."""
        config, objective = config or self.plan.config, objective or self.plan.objective
        return weigh(self.evidence.space, self.influence, self.gradients, objective, config)

    def answer(self, scored: Scored, chosen: Mask | None = None) -> Answer:
        """The update without the samples of `chosen`; by default those that the options choose."""
        chosen = chosen or choose_mask(scored.score, self.plan.config)
        (found,) = self.answers([(scored, chosen)])
        return found

    def by(self, gradients: Gradients) -> Solved:
        """The same rows and H⁻¹ with other gradients; the influence on those that are among this
        one's is known."""
        old = [name for name, each in gradients.items() if each is self.gradients.get(name)]
        new = {name: each for name, each in gradients.items() if name not in old}
        if not new:
            return replace(self, gradients=gradients)
        (found,) = influences(self.evidence.space, [new], self.evidence.solve)
        columns = [self.influence.of(name)[:, None] for name in old]
        values = torch.cat([found.values, *columns], 1)
        warnings = list(dict.fromkeys([*found.warnings, *self.influence.warnings * bool(old)]))
        found = replace(found, names=(*found.names, *old), values=values, warnings=warnings)
        return replace(self, gradients=gradients, influence=found)

    def answers(self, asked: Sequence[tuple[Scored, Mask]]) -> list[Answer]:
        """The update of each mask, all of them by the same passes over the rows."""
        if not asked:
            return []
        masks = torch.stack([chosen.remove for _, chosen in asked])
        updates = self.evidence.remove(masks)
        answers = []
        for (scored, chosen), update in zip(asked, updates, strict=True):
            found = [*scored.influence.warnings, *chosen.warnings, *update.warnings]
            said = list(dict.fromkeys(found))
            answers.append(Answer(scored, chosen.remove, update, said, chosen))
        return answers

    def by_each(self, *several: Gradients) -> list[Solved]:
        """The same rows and H⁻¹ with gradients of other prompts, each by itself."""
        found = influences(self.evidence.space, several, self.evidence.solve)
        pairs = zip(several, found, strict=True)
        return [replace(self, gradients=own, influence=values) for own, values in pairs]


def solve(
    plan: Plan,
    gradients: Callable[[], Gradients] | None = None,
    check: Callable[[Gradients, Space], object] | None = None,
) -> Solved:
    """Rows, metric gradients and influences, each stage timed; the model holds θ* before and after.

    Args:
        plan: What is asked.
        gradients: Makes the metrics' gradients; the plan's own on its validation prompts where
            None.
        check: Is shown gradients and rows before anything is solved, and may refuse.
    """
    clock = plan.clock
    plan.run.engine.load(plan.run.theta)
    with clock.stage("sample gradients"):
        gathered = gather(plan)
    with clock.stage("metric gradients"):
        found = plan.gradients(plan.valid) if gradients is None else gradients()
    if check is not None:
        with clock.stage("diagnostics"):
            check(found, gathered.space)
    with clock.stage("scores"):
        evidence = solvers(plan, gathered)
        (values,) = influences(evidence.space, [found], evidence.solve)
    return Solved(plan, evidence, found, values)


def influences(space: Space, several: Sequence[Gradients], solve: Solve) -> list[Influence]:
    """Influence of the rows' samples on every metric of some prompts, and of others, by one solve:
    what no λ takes part in."""
    whole = [found.gradient for gradients in several for found in gradients.values()]
    names = [f"{name}{f' ({at})' if at else ''}" for at, own in enumerate(several) for name in own]
    projected = dict(zip(names, space.project(torch.stack(whole)), strict=True))
    found = influence(space.rows, projected, solve, n=space.total)
    columns = found.values.split([len(gradients) for gradients in several], 1)
    pairs = zip(several, columns, strict=True)
    return [replace(found, names=tuple(own), values=values) for own, values in pairs]


def weigh(
    space: Space,
    found: Influence,
    gradients: Gradients,
    objective: Objective,
    config: DebiasConfig,
) -> Scored:
    """The score of all n samples, for the λ's of `config`, from influences of those with a row;
    each metric of the objective is scaled by its value at θ*."""
    start = torch.tensor([gradients[name].value for name in objective.names])
    columns = torch.stack([found.of(name) for name in objective.names], 1)
    fairness = columns @ objective.coefficients(start).to(columns)
    accuracy = found.of(VALIDATION_LOSS) if VALIDATION_LOSS in found.names else None
    lambdas = (config.lambda_fair, config.lambda_acc, config.lambda_spa)
    # Without a weight it takes no part, whatever stands in its place.
    other = torch.zeros_like(fairness) if accuracy is None else accuracy
    score = scores(fairness, other, *lambdas)
    if space.index is None:
        return Scored(found, fairness, accuracy, score)
    return Scored(
        replace(found, values=space.spread(found.values, torch.nan)),
        space.spread(fairness, torch.nan),
        None if accuracy is None else space.spread(accuracy, torch.nan),
        space.spread(score, float(score.abs().max()) + 1),
    )


def choose_mask(score: Tensor, config: DebiasConfig) -> Mask:
    """The samples to remove [n] by the options: the threshold rule, or descent."""
    make = gradient_descent_mask if config.mask == "descent" else threshold_mask
    return make(score, config.budget)
