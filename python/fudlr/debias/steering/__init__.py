"""Steering: adapters that follow the metric further than a removal of samples goes.

One file and one line here make a mode. None of them is removal or unlearning, none is on by
default, and each result says so. The truth to hold them against is retraining with sample weights
1 − m where the mode has a mask of its own, and without the plain removal's samples otherwise.
"""

from __future__ import annotations

from dataclasses import replace

from fudlr.debias.steering.base import Mode, Steered, Steering
from fudlr.debias.steering.direct import direct, metric_steps
from fudlr.debias.steering.line_search import line_search
from fudlr.debias.steering.signed import signed
from fudlr.debias.steering.soft import soft
from fudlr.evaluation import Prompts
from fudlr.gradients.metric import MetricGradients
from fudlr.influence.update import finish
from fudlr.pipeline.evidence import Evidence
from fudlr.pipeline.job import Job
from fudlr.pipeline.request import Answer

MODES: dict[str, Mode] = {
    "line_search": line_search,
    "soft": soft,
    "signed": signed,
    "direct": direct,
}
"""By the name that `debias.steering` uses."""
OWN_MASKS = ("soft", "signed")
"""Modes whose mask is not the plain removal's."""
WARNING = (
    "This adapter was steered ({mode}), not freed of samples: it is not what retraining without "
    "them gives. `fudlr verify` puts that beside it; see docs/steering.md."
)

__all__ = ["MODES", "OWN_MASKS", "Steered", "Steering", "metric_steps", "steer"]


def steer(
    job: Job, evidence: Evidence, prompts: Prompts, gradients: MetricGradients, removal: Answer
) -> tuple[Answer, dict[str, object]]:
    """The plain removal's answer with mask and update of the mode that the options name.

    Returns:
        The answer, and what the summary has under `steering`.
    """
    mode = job.config.steering
    assert mode is not None
    found = MODES[mode](Steering(job, evidence, prompts, gradients, removal))
    solution = found.solution or removal.update.solution
    update = finish(job.run.theta, found.shift, solution)
    warnings = [*removal.warnings, WARNING.format(mode=mode)]
    about = {"mode": mode, "own_mask": mode in OWN_MASKS, **found.about}
    return replace(removal, mask=found.mask, update=update, warnings=warnings), about
