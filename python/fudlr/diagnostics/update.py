"""Masks that have not settled, and updates that no removal of samples explains.

Retraining without any sample stays at θ₀. So ‖θ* − θ₀‖ is as far as a removal can go, and the loss
at θ₀ as bad as it can get: an update beyond them has lost more than the removed samples taught.
"""

from fudlr.diagnostics.base import MAX_LOSS_RISE, Facts, Finding, Severity, graded
from fudlr.gradients.metric import VALIDATION_LOSS
from fudlr.influence.mask import LAST

RESTLESS, OSCILLATING = 0.02, 0.1
"""Share of the budget: a settled descent changes none, whatever the scores."""
LONG, TOO_LONG = 0.6, 1.0
"""Of ‖θ* − θ₀‖: a retraining without a tenth of the samples goes about half of it at most."""
HALF, ALL = 0.5, 1.0
BENT = 2.0
"""Times what an update took for granted: 0.7 to 1.4 in trainings where updates came within a tenth
of what retraining changes, 2.1 to 2.8 in one where they went 1.2 to 2.5 times as far
(unrolled.json)."""
LEAST = 0.05
"""Relative rise of the validation loss that is not refused even where training had won less."""
COSTLY, RUINOUS = 0.2, 0.5
"""Relative fall of NDCG. Differences of 8% are noise on a thousand users."""

DUE = 0.2
"""Of the training samples, forgotten in all (`python benchmarks/forget.py`, forget.json)."""


def oscillation(facts: Facts) -> Finding | None:
    """Samples that changed sides in the last tenth of the descent's steps, beside the budget's.

    The threshold rule has no steps and cannot oscillate.
    """
    if facts.mask is None or facts.mask.unsettled is None:
        return None
    share = facts.mask.unsettled
    return graded(
        "oscillation",
        share,
        {Severity.WARN: RESTLESS, Severity.REFUSE: OSCILLATING},
        found=f"in the last {LAST:.0%} of the steps of the mask's descent samples changed sides "
        f"that make {share:.0%} of the budget",
        reason=f"Beyond {RESTLESS:.0%} it has not settled, beyond {OSCILLATING:.0%} the mask is "
        "that of the step where it happened to stop.",
        advice="Use debias.mask=threshold, which is the optimum that the descent looks for.",
    )


def shift(facts: Facts) -> Finding | None:
    """‖δ‖ / ‖θ* − θ₀‖."""
    assert facts.update is not None
    way, length = facts.trained_way, float(facts.update.delta.norm())
    share = length / way if way else float("inf") if length else 0.0
    return graded(
        "shift",
        share,
        {Severity.WARN: LONG, Severity.REFUSE: TOO_LONG},
        found=f"the update shifts the adapter by {share:.3g} times the way that training went",
        reason=f"Real removals of 10% stay below {LONG:g}, and a removal of every sample goes "
        f"{TOO_LONG:g}.",
        advice=_advice(facts, "Likely too small a damping: raise it", "remove fewer samples"),
    )


def bend(facts: Facts) -> Finding | None:
    """The curvature of the validation loss along an unrolled update, beside what that took for
    granted; where the loss has a gradient, and sketches alone answered."""
    retraining, gradients, update = facts.retraining, facts.gradients, facts.update
    if retraining is None or retraining.exact is not None:
        return None
    if gradients is None or VALIDATION_LOSS not in gradients:
        return None
    assert facts.before is not None
    assert facts.after is not None
    assert update is not None
    rise = facts.after.metrics["val_loss"] - facts.before.metrics["val_loss"]
    gradient, ratio = gradients[VALIDATION_LOSS].gradient, update.details["stiffness"]
    found = retraining.bend(update.delta, ratio, gradient, rise)
    if found is None:
        return None
    return graded(
        "bend",
        found,
        {Severity.WARN: BENT},
        found=f"along the update the validation loss bends {found:.2g} times as much as was taken "
        "for granted",
        reason=f"Above {BENT:g} the training is not what its gradients tell of it: retraining "
        "changed the metric by less than half of the update in one such case.",
        advice="Do not rely on the update's size before `fudlr verify`; remove fewer samples.",
    )


def loss(facts: Facts) -> Finding | None:
    """Rise of the validation loss, beside what training had won of it."""
    assert facts.before is not None
    assert facts.after is not None
    first = facts.before.metrics["val_loss"]
    rise = facts.after.metrics["val_loss"] - first
    won = max((facts.start_loss or first) - first, 0.0)
    allowed = MAX_LOSS_RISE * first
    return graded(
        "loss",
        rise,
        {
            Severity.WARN: min(allowed, HALF * won) if won else allowed,
            Severity.REFUSE: max(ALL * won, LEAST * first, allowed),
        },
        found=f"the update changes the validation loss by {rise:+.4f} ({rise / first:+.1%}); "
        f"training had won {won:.4f} of it",
        reason="An update should not cost half of what training won, nor more than "
        f"{MAX_LOSS_RISE:.1%}; beyond all that it won, and {LEAST:.0%}, it has forgotten.",
        advice=_advice(facts, "Remove fewer samples", "raise lambda_acc or the damping"),
    )


def ranking(facts: Facts) -> Finding | None:
    """Fall of NDCG@K on the test prompts, where its paired interval lies below 0 altogether."""
    assert facts.before is not None
    assert facts.after is not None
    key = f"ndcg@{facts.plan.test.side.k}"
    first, last = facts.before.metrics[key], facts.after.metrics[key]
    if first <= 0:
        return None
    fall = 1 - last / first
    low, high = (facts.change or {}).get(key, (0.0, 0.0))
    levels = {Severity.WARN: COSTLY, Severity.REFUSE: RUINOUS}
    if high >= 0:  # as much would come about among these users by chance
        levels = {Severity.WARN: float("inf")}
    return graded(
        "ranking",
        fall,
        levels,
        found=f"the update changes {key} from {first:.4g} to {last:.4g} ({-fall:+.1%}, interval "
        f"of the difference {low:+.2g} to {high:+.2g})",
        reason=f"Beyond the users' noise, more than {COSTLY:.0%} lost is too much for any removal "
        f"that helps, and more than {RUINOUS:.0%} is an adapter ruined.",
        advice=_advice(facts, "Remove fewer samples", "raise lambda_acc or the damping"),
    )


def due(facts: Facts) -> Finding | None:
    """Share of the training samples that all requests so far have taken out."""
    assert facts.mask is not None
    share = float(facts.mask.remove.double().mean())
    return graded(
        "due",
        share,
        {Severity.WARN: DUE},
        found=f"{share:.1%} of the training samples are forgotten, all requests together",
        reason=f"Beyond {DUE:.0%} the update was measured to raise the test loss by four fifths of "
        "what retraining does.",
        advice="Retraining is due: train again without them, and forget from there.",
    )


def _advice(facts: Facts, *remedies: str) -> str:
    """The remedies as a sentence, with another curvature where it is not the usual one."""
    said = list(remedies)
    if facts.plan.update == "closed_form" and facts.plan.config.curvature != "empirical_fisher":
        said.append("use empirical_fisher")
    return f"{', or '.join(said)}."
