"""Masks that oscillate: samples that still change sides at the end of the mask's descent.

The threshold rule has no steps and cannot oscillate; gradient descent on the mask can, with too
large a learning rate or too few steps.
"""

from fudlr.diagnostics.base import Facts, Finding, Severity, graded
from fudlr.influence.mask import LAST

RESTLESS, OSCILLATING = 0.02, 0.1
"""Share of the budget: a settled descent changes none, whatever the scores."""


def oscillation(facts: Facts) -> Finding | None:
    """Samples that changed sides in the last tenth of the steps, beside the budget's."""
    if facts.mask is None or facts.mask.unsettled is None:
        return None
    share, config = facts.mask.unsettled, facts.job.config
    return graded(
        "oscillation",
        share,
        {Severity.WARN: RESTLESS, Severity.REFUSE: OSCILLATING},
        found=f"in the last {LAST:.0%} of {config.mask_steps} steps of the mask's descent samples "
        f"changed sides that make {share:.0%} of the budget",
        reason=f"Beyond {RESTLESS:.0%} it has not settled, beyond {OSCILLATING:.0%} the mask is "
        "that of the step where it happened to stop.",
        advice="Lower debias.mask_rate, raise debias.mask_steps, or use debias.mask=threshold.",
    )
