"""Held-out users: an update judged by users that its own gradient had no part in."""

from __future__ import annotations

from typing import Any

import torch

from fudlr.data import holdout_users
from fudlr.debias.steering import steer
from fudlr.debias.summary import intervals
from fudlr.evaluation import Measured, measured
from fudlr.metrics import bootstrap
from fudlr.pipeline.evidence import Evidence
from fudlr.pipeline.job import Job
from fudlr.pipeline.request import answer, choose_mask, score_samples


def heldout(job: Job, evidence: Evidence, before: Measured) -> dict[str, Any]:
    """Twofold cross-fitting: each user is judged by an update that its own gradient had no part in.

    The curvature is of the training samples and serves both halves; scores, mask and update are
    made anew for each. The halves' scores are joined before anything is measured, so that group
    metrics are over as many users as everywhere else.
    """
    run, config = job.run, job.config
    losses = torch.empty_like(before.losses)
    scores = losses.new_empty(job.test.side.seen.shape)
    valid_losses = torch.empty(len(job.valid.samples))
    halves = holdout_users(job.valid.samples, 0.5, config.seed)
    with job.clock.stage("held-out users"):
        for own, other in (halves, halves[::-1]):
            run.engine.load(run.theta)
            gradients = job.gradients(job.valid.take(own))
            scored = score_samples(evidence.space, gradients, job.objective, evidence.solve, config)
            found = answer(scored, choose_mask(scored.score, config), evidence.remove)
            if config.steering and found.mask.any():
                found, _ = steer(job, evidence, job.valid.take(own), gradients, found)
            run.engine.load(found.update.theta)
            part = torch.from_numpy(other)
            test, valid = job.test.take(other).samples, job.valid.take(other).samples
            scores[part], losses[part] = run.recommender.evaluate(test, config.batch)
            valid_losses[part] = run.recommender.losses(valid, config.batch)
        after = measured(scores, losses, valid_losses, job.test.side)
        pair = {"before": before.statistics, "after": after.statistics}
        drawn = bootstrap(pair, job.test.side, seed=config.seed)
    return {
        "before": before.metrics,
        "after": after.metrics,
        "intervals": intervals(drawn, {"after": "change"}),
    }
