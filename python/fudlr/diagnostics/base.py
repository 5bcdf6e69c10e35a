"""What a diagnostic finds: something measured, a threshold with its reason, and advice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from fudlr.evaluation import Measured
from fudlr.gradients import Space
from fudlr.gradients.metric import MetricGradients
from fudlr.influence.mask import Mask
from fudlr.influence.update import Update
from fudlr.pipeline.plan import Plan
from fudlr.pipeline.unrolling import Retraining

MAX_LOSS_RISE = 0.02
"""Relative rise of the validation loss that an update should not cost."""


class Severity(StrEnum):
    """What becomes of a request."""

    PASSED = "passed"
    """Nothing: what was measured is in its usual range."""
    NOTE = "note"
    """It stands in the report."""
    WARN = "warn"
    """It is a warning."""
    KEEP = "keep"
    """There is nothing here to remove: the mask is left empty, unless forced."""
    REFUSE = "refuse"
    """No adapter is given, unless forced."""

    @property
    def rank(self) -> int:
        """0 for passed, larger for worse."""
        return list(Severity).index(self)


@dataclass(frozen=True)
class Finding:
    """What one diagnostic found.

    Attributes:
        name: Key in `DIAGNOSTICS`.
        severity: What it means for this request.
        measured: The figure.
        threshold: What it is held against, that of the severity found; the nearest where it passed.
        found: In words, what was measured.
        reason: Why the threshold is where it is.
        advice: What to do.
    """

    name: str
    severity: Severity
    measured: float
    threshold: float
    found: str
    reason: str
    advice: str

    @property
    def sentence(self) -> str:
        """For warnings and refusals."""
        text = f"{self.found[:1].upper()}{self.found[1:]}. {self.reason} {self.advice}"
        return f"Nothing here to remove: {text}" if self.severity is Severity.KEEP else text


@dataclass
class Facts:
    """What diagnostics are read from; more is known the later they run.

    Attributes:
        plan: The run and the options.
        gradients: Of the metrics, with their scores and parts.
        space: The samples' gradients.
        mask: The samples to remove.
        update: The updated adapter.
        retraining: What made it by repeating the training, if so.
        before, after: Figures of the trained and of the updated adapter.
        start_loss: Validation loss at θ₀.
        change: Paired intervals of the figures' changes.
    """

    plan: Plan
    gradients: MetricGradients | None = None
    space: Space | None = None
    mask: Mask | None = None
    update: Update | None = None
    retraining: Retraining | None = None
    before: Measured | None = None
    after: Measured | None = None
    start_loss: float | None = None
    change: Mapping[str, tuple[float, float]] | None = None

    @property
    def trained_way(self) -> float:
        """‖θ* − θ₀‖: how far training went, which is as far as forgetting every sample goes."""
        return float((self.plan.run.theta - self.plan.run.start).norm())

    def objective_parts(self) -> Tensor | None:
        """What each part of the prompts adds to ∇F of the objective, [K, d]; None where not kept.

        F is relative to its value at θ*, and lower is better.
        """
        found, objective = self.gradients, self.plan.objective
        if found is None or found.parts is None:
            return None
        values = self.plan.run.theta.new_tensor([found[name].value for name in objective.names])
        names = list(found)
        index = [names.index(name) for name in objective.names]
        return torch.einsum("t,ktd->kd", objective.coefficients(values), found.parts[:, index])


Look = Callable[[Facts], Finding | None]
"""From facts to a finding; None where the diagnostic does not concern the request."""


def graded(
    name: str,
    measured: float,
    levels: Mapping[Severity, float],
    *,
    found: str,
    reason: str,
    advice: str,
    smaller: bool = False,
) -> Finding:
    """The finding of a figure that is the worse the larger (or smaller) it is.

    Args:
        name: Of the diagnostic.
        measured: The figure.
        levels: The figure beyond which each severity begins.
        found: What was measured, in words.
        reason: Of the thresholds.
        advice: What to do.
        smaller: Whether small figures are the bad ones.
    """
    sign = -1 if smaller else 1
    # A figure that is not a number is beyond every limit.
    met = [each for each, limit in levels.items() if not sign * measured <= sign * limit]
    worst = max(met, key=lambda each: each.rank, default=Severity.PASSED)
    threshold = levels[worst] if met else (max if smaller else min)(levels.values())
    return Finding(name, worst, measured, threshold, found, reason, advice)
