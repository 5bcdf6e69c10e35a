"""Held-out users: an update judged by users that its own gradient had no part in."""

from __future__ import annotations

from typing import Any

import torch

from fudlr.common.factors import Scores, joined
from fudlr.data.interactions import Ints
from fudlr.debias.summary import intervals
from fudlr.evaluation import Measured, measured
from fudlr.gradients.metric import VALIDATION_LOSS, MetricGradient, MetricGradients
from fudlr.influence.mask import Mask
from fudlr.metrics import surrogate
from fudlr.pipeline.request import Answer, Gradients, Scored, Solved, choose_mask


def asked(solved: Solved) -> list[tuple[Scored, Mask]]:
    """Scores and mask by the gradients of each half of the users; the rows serve both."""
    plan = solved.plan
    halves = plan.halves(plan.valid)
    plan.run.engine.load(plan.run.theta)
    own = [half_gradients(solved, users, half) for half, users in enumerate(halves)]
    scored = [half.scored() for half in solved.by_each(*own)]
    return [(each, choose_mask(each.score, plan.config)) for each in scored]


def judged(solved: Solved, answers: list[Answer], before: Measured) -> dict[str, Any]:
    """Twofold cross-fitting: figures with each user judged by the other half's adapter.

    The halves' scores are joined before anything is measured, so that group metrics are over as
    many users as everywhere else.
    """
    plan = solved.plan
    run, batch = plan.run, plan.config.batch
    losses = torch.empty_like(before.losses)
    scores: list[tuple[torch.Tensor, Scores]] = []
    valid_losses = torch.empty(len(plan.valid.samples))
    for answer, other in zip(answers, plan.halves(plan.valid)[::-1], strict=True):
        run.engine.load(answer.update.theta)
        part = torch.from_numpy(other)
        test, valid = plan.test.take(other).samples, plan.valid.take(other).samples
        found, losses[part] = run.recommender.evaluate(test, batch)
        scores.append((part, found))
        valid_losses[part] = run.recommender.losses(valid, batch)
    after = measured(joined(scores), losses, valid_losses, plan.test.side)
    pair = {"before": before.statistics, "after": after.statistics}
    drawn = intervals(pair, plan.test.side, plan.seed)
    return {"before": before.metrics, "after": after.metrics, "intervals": drawn}


def half_gradients(solved: Solved, own: Ints, half: int) -> Gradients:
    """Gradients on the validation prompts at `own`, one of the plan's halves.

    Of means over prompts, what the half added to the whole's; of other metrics anew.
    """
    plan, whole = solved.plan, solved.gradients
    prompts, known = plan.valid.take(own), {}
    if isinstance(whole, MetricGradients) and whole.parts is not None:
        share = len(own) / len(plan.valid.samples)
        gradients = dict(zip(whole, whole.parts.chunk(2)[half].sum(0) / share, strict=True))
        values = {
            metric.name: surrogate(metric, whole.scores[own], prompts.side)
            for metric in plan.metrics
            if metric.is_mean
        }
        values[VALIDATION_LOSS] = whole.losses[own].mean()
        known = {
            name: MetricGradient(float(values[name]), gradient)
            for name, gradient in gradients.items()
            if name in values
        }
    return known if len(known) == len(plan.names) else plan.gradients(prompts, known=known)
