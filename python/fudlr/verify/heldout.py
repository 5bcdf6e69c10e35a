"""Held-out users by cross-fitting: a mask from one half's gradients, judged on the other half.

For each half, scores, mask and update are made anew with that half alone as validation
prompts, and the adapter is retrained without the mask's samples. Each user is judged by the
adapters that its own gradient had no part in, and the halves are joined before anything is
measured.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fudlr.common.factors import joined
from fudlr.data import holdout_users
from fudlr.debias import debias, intervals, plain_nulls
from fudlr.metrics import Statistics, permutation_null, statistics
from fudlr.verify.case import Case
from fudlr.verify.retraining import removal

STATES = ("after", "retrained")


def heldout(case: Case) -> dict[str, Any] | None:
    """Figures, paired intervals and the permutation null on users that did not steer."""
    if not case.checks.heldout:
        return None
    halves = holdout_users(case.run.valid.samples, 0.5, case.seed)
    masks, thetas = [], []
    for own in halves:
        split = replace(case.run.split, valid=case.run.valid.take(own).samples)
        steered = replace(case.run, split=split)  # by these users alone
        # Whether there is anything to remove was decided on all users, not on half of them.
        found = debias(steered, case.config, curve=(), heldout=False, force=True)
        masks.append(found.mask)
        thetas.append(found.theta)
    jobs = [removal(f"without half {i + 1}'s", mask.float()) for i, mask in enumerate(masks)]
    done = case.retrain(jobs, "retrain for held-out users")
    side = case.run.test.side
    measured = {"before": statistics(case.scores(case.run.theta), side)}
    for number, state in enumerate(STATES):
        parts = []
        for i, other in enumerate(reversed(halves)):
            theta = (thetas[i], done[i].theta)[number]
            parts.append((torch.from_numpy(other), case.scores(theta, case.run.test.take(other))))
        measured[state] = statistics(joined(parts), side)
    return {
        **{state: each.values for state, each in measured.items()},
        "intervals": intervals(measured, side, case.seed),
        "null": {state: null(each, case) for state, each in measured.items()},
        "removed": [int(mask.sum()) for mask in masks],
    }


def null(found: Statistics, case: Case) -> dict[str, Any]:
    """The permutation null of every group metric, as the summary has it."""
    return plain_nulls(permutation_null(found, case.run.test.side, seed=case.seed))
