"""Catastrophic forgetting: a shift, a loss or a ranking that no removal of samples explains.

Retraining without any sample stays at θ₀. So ‖θ* − θ₀‖ is as far as a removal can go, and the loss
at θ₀ as bad as it can get: an update beyond them has lost more than the removed samples taught.
"""

from fudlr.diagnostics.base import Facts, Finding, Severity, graded

LONG, TOO_LONG = 0.6, 1.0
"""Of ‖θ* − θ₀‖: a retraining without a tenth of the samples goes about half of it at most."""
HALF, ALL = 0.5, 1.0
LEAST = 0.05
"""Relative rise of the validation loss that is not refused even where training had won less."""
COSTLY, RUINOUS = 0.2, 0.5
"""Relative fall of NDCG. Differences of 8% are noise on a thousand users."""


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
        advice="Likely a curvature without the entries between layers, or too small a damping: use "
        "empirical_fisher or ggn, raise the damping, or remove fewer samples.",
    )


def loss(facts: Facts) -> Finding | None:
    """Rise of the validation loss, beside what training had won of it."""
    assert facts.before is not None
    assert facts.after is not None
    first, rise = facts.before.metrics["val_loss"], 0.0
    rise = facts.after.metrics["val_loss"] - first
    won = max((facts.start_loss or first) - first, 0.0)
    allowed = facts.job.config.max_loss_rise * first
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
        f"{facts.job.config.max_loss_rise:.1%} (debias.max_loss_rise); beyond all that it won, and "
        f"{LEAST:.0%}, it has forgotten.",
        advice="Remove fewer samples, raise lambda_acc, or raise the damping.",
    )


def ranking(facts: Facts) -> Finding | None:
    """Fall of NDCG@K on the test prompts; refused where its interval lies below 0 altogether."""
    assert facts.before is not None
    assert facts.after is not None
    key = f"ndcg@{facts.job.test.side.k}"
    first, last = facts.before.metrics[key], facts.after.metrics[key]
    if first <= 0:
        return None
    fall = 1 - last / first
    _, high = (facts.change or {}).get(key, (0.0, 0.0))
    levels = {Severity.WARN: COSTLY, **({Severity.REFUSE: RUINOUS} if high < 0 else {})}
    return graded(
        "ranking",
        fall,
        levels,
        found=f"the update changes {key} from {first:.4g} to {last:.4g} ({-fall:+.1%})",
        reason=f"More than {COSTLY:.0%} lost is too much for any removal that helps, and more than "
        f"{RUINOUS:.0%}, beyond the users' noise, is an adapter ruined.",
        advice="Remove fewer samples, raise lambda_acc or the damping, or use empirical_fisher.",
    )
