"""Held-out users: an update judged by users that its own gradient had no part in."""

from __future__ import annotations

from typing import Any

import torch

from fudlr.data import holdout_users
from fudlr.debias.summary import intervals
from fudlr.evaluation import Measured, measured
from fudlr.pipeline.request import Solved, choose_mask


def heldout(solved: Solved, before: Measured) -> dict[str, Any]:
    """Twofold cross-fitting: each user is judged by an update that its own gradient had no part in.

    The curvature is of the training samples and serves both halves; scores, mask and update are
    made anew for each. The halves' scores are joined before anything is measured, so that group
    metrics are over as many users as everywhere else.
    """
    plan = solved.plan
    run, batch, seed = plan.run, plan.config.batch, plan.seed
    losses = torch.empty_like(before.losses)
    scores = losses.new_empty(plan.test.side.seen.shape)
    valid_losses = torch.empty(len(plan.valid.samples))
    halves = holdout_users(plan.valid.samples, 0.5, seed)
    with plan.clock.stage("held-out users"):
        run.engine.load(run.theta)
        parts = solved.by_each(*(plan.gradients(plan.valid.take(own)) for own in halves))
        scored = [half.scored() for half in parts]
        masks = [choose_mask(each.score, plan.config) for each in scored]
        answers = solved.answers(list(zip(scored, masks, strict=True)))
        for answer, other in zip(answers, halves[::-1], strict=True):
            run.engine.load(answer.update.theta)
            part = torch.from_numpy(other)
            test, valid = plan.test.take(other).samples, plan.valid.take(other).samples
            scores[part], losses[part] = run.recommender.evaluate(test, batch)
            valid_losses[part] = run.recommender.losses(valid, batch)
        after = measured(scores, losses, valid_losses, plan.test.side)
        pair = {"before": before.statistics, "after": after.statistics}
        drawn = intervals(pair, plan.test.side, seed)
    return {"before": before.metrics, "after": after.metrics, "intervals": drawn}
