"""Training that was not converged: the last epoch's fall of the loss, as a share of all epochs'.

An update is a step from an optimum. Where the loss still falls from epoch to epoch, retraining goes
on falling too, and the closed form, which holds the slope, stands for a training as short.
"""

from fudlr.diagnostics.base import Facts, Finding, Severity, graded

STILL_FALLING = 0.1
"""Of the whole fall: a tenth an epoch means that the last ten per cent were not learned yet."""


def training(facts: Facts) -> Finding | None:
    """(L_{E−1} − L_E) / (L_1 − L_E); 1 after one epoch.

    None for adapters trained elsewhere, and where the training is gone again, ended or not.
    """
    losses = facts.job.run.losses
    if not losses or facts.job.config.update == "replay":
        return None
    whole = losses[0] - losses[-1]
    share = (losses[-2] - losses[-1]) / whole if len(losses) > 1 and whole > 0 else 1.0
    advice = "Train longer (train.epochs), go the training again (debias.update: replay)"
    if facts.job.config.metric == "identity":
        advice += ", or damp by the optimiser's pace (debias.metric: adam)"
    return graded(
        "training",
        share,
        {Severity.WARN: STILL_FALLING},
        found=f"the last of {len(losses)} epochs of training made {share:.0%} of the loss's fall",
        reason=f"Beyond {STILL_FALLING:.0%} training has not converged, and the closed form stands "
        "for a retraining that stops as early.",
        advice=f"{advice}.",
    )
