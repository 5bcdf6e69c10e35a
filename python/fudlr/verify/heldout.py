"""Held-out users by cross-fitting: a mask from one half's gradients, judged on the other half.

For each half, scores, mask and closed form are made anew with that half alone as validation
prompts, and the adapter is retrained without the mask's samples. Each user is judged by the
adapters that its own gradient had no part in, and the halves are joined before anything is
measured.
"""

from __future__ import annotations

from typing import Any

import torch

from fudlr.data import holdout_users
from fudlr.debias import debias, intervals
from fudlr.metrics import bootstrap, evaluate, permutation_null
from fudlr.verify.case import Case
from fudlr.verify.retraining import removal

STATES = ("after", "retrained")


def heldout(case: Case) -> dict[str, Any] | None:
    """Figures, paired intervals and the permutation null on users that did not steer."""
    if not case.checks.heldout:
        return None
    halves = holdout_users(case.valid.samples, 0.5, case.config.seed)
    masks, thetas = [], []
    for own in halves:
        steered = case.steered_by(case.valid.take(own))
        # Whether there is anything to remove was decided on all users, not on half of them.
        found = debias(steered, case.config, curve=(), heldout=False, force=True)
        masks.append(found.mask)
        thetas.append(found.theta)
    jobs = [removal(f"without half {i + 1}'s", mask.float()) for i, mask in enumerate(masks)]
    done = case.retrain(jobs, "retrain for held-out users")
    before = case.measure(case.run.theta)
    joined = {state: torch.empty_like(before.scores) for state in STATES}
    for i, other in enumerate(reversed(halves)):
        part = torch.from_numpy(other)
        for state, theta in zip(STATES, (thetas[i], done[i].theta), strict=True):
            joined[state][part] = case.measure(theta).scores[part]
    scores = {"before": before.scores, **joined}
    side = case.test.side
    drawn = bootstrap(scores, side, seed=case.config.seed)
    return {
        **{state: evaluate(matrix, side) for state, matrix in scores.items()},
        "intervals": intervals(drawn, {"after": "change", "retrained": "retrained_change"}),
        "null": {state: null(matrix, case) for state, matrix in scores.items()},
        "removed": [int(mask.sum()) for mask in masks],
    }


def null(scores: torch.Tensor, case: Case) -> dict[str, Any]:
    """The permutation null of every group metric, as the summary has it."""
    found = permutation_null(scores, case.test.side, seed=case.config.seed)
    return {
        name: {"observed": n.observed, "mean": n.mean, "interval": [n.low, n.high], "p": n.p_value}
        for name, n in found.items()
    }
