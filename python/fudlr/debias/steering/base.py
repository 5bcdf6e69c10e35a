"""What steering modes are given, and what they give back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fudlr.evaluation import Prompts
from fudlr.gradients.metric import MetricGradient
from fudlr.influence.solvers import Solution
from fudlr.pipeline.evidence import Evidence
from fudlr.pipeline.job import Job
from fudlr.pipeline.request import Answer


@dataclass(frozen=True)
class Steered:
    """Where a mode went.

    Attributes:
        shift: From θ*, `[d]`.
        mask: m `[n]`; the truth to hold it against is a retraining with sample weights 1 − m.
        about: Facts for the summary.
        solution: The last solve, where there was one.
    """

    shift: Tensor
    mask: Tensor
    about: dict[str, Any] = field(default_factory=dict)
    solution: Solution | None = None


@dataclass
class Steering:
    """One request to steer: what was found for the plain removal, and the prompts to steer by.

    Attributes:
        job: The run and the options; its model is free to be moved.
        evidence: Rows and H⁻¹.
        prompts: Whose metrics are followed.
        gradients: At θ* on them.
        removal: The plain removal.
    """

    job: Job
    evidence: Evidence
    prompts: Prompts
    gradients: Mapping[str, MetricGradient]
    removal: Answer

    @cached_property
    def coefficients(self) -> Tensor:
        """Of the objective's metrics, relative to θ* and turned so that lower is better, `[T]`."""
        objective = self.job.objective
        start = [self.gradients[name].value for name in objective.names]
        return objective.coefficients(torch.tensor(start))

    def gradients_at(self, theta: Tensor) -> Mapping[str, MetricGradient]:
        """Of all metrics at `theta` [d]; the model then holds θ*."""
        run = self.job.run
        run.engine.load(theta)
        try:
            return self.job.gradients(self.prompts)
        finally:
            run.engine.load(run.theta)

    def judge(self, theta: Tensor) -> tuple[float, float]:
        """Relative change of the objective, lower is better, and of the loss, at `theta` [d]."""
        run, objective = self.job.run, self.job.objective
        values = []
        for vector in (run.theta, theta):
            run.engine.load(vector)
            scores, losses = run.recommender.evaluate(self.prompts.samples, self.job.config.batch)
            surrogates = objective.surrogates(scores, self.prompts.side)
            values.append((surrogates, float(losses.mean())))
        run.engine.load(run.theta)
        (first, loss), (then, later) = values
        moved = float(self.coefficients.double() @ (then - first))
        return moved, later / loss - 1

    def shift_of(self, mask: Tensor) -> Solution:
        """(1/n) H⁻¹ Gᵀ m in the rows' space, for any m `[n]`, signed ones too."""
        space = self.evidence.space
        weights = space.of_rows(mask).to(self.job.run.theta)[None]
        return self.evidence.solve(space.rows.sum(weights) / space.total)

    def lift(self, solution: Solution) -> Tensor:
        """The adapter's shift `[d]` of such a solve."""
        return self.evidence.space.lift(solution.x)[0]


Mode = Callable[[Steering], Steered]
