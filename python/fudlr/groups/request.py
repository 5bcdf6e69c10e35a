"""One request for each set of users, from one gradient pass and one solve.

    s_ic = (1/n) g_iᵀ H⁻¹ ∇F_c,   F_c the objective on the prompts of set c alone
    θ_c  = θ* + (1/n) H⁻¹ Gᵀ m_c,   m_c the mask of the scores s_c

Rows of gradients, the forward pass over all users and the solve are shared. The prompts are put in
order by the sets that they belong to, and a batch goes back only for the sets that it has users of.
So disjoint sets cost one backward pass over the users together, however many they are, beside that
of everyone and of the loss; a batch that two sets share goes back twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fudlr.common.errors import DataError, UsageError
from fudlr.common.factors import Scores
from fudlr.common.progress import track
from fudlr.config import DebiasConfig
from fudlr.diagnostics import BEFORE, MASK, MAX_LOSS_RISE, Facts, Finding, look, plain, warnings
from fudlr.gradients import Space
from fudlr.gradients.metric import MetricGradients, metric_gradients
from fudlr.groups.sets import UserSet
from fudlr.metrics import Objective, bootstrap, evaluate
from fudlr.metrics.attribute import Within
from fudlr.pipeline.plan import Plan, collected_warnings, prepare
from fudlr.pipeline.request import Answer, Gradients, choose_mask, solve
from fudlr.run import Run

EVERYONE = "everyone"
"""Name of the set of all users, which is always there to compare with."""
LEAST = 2
"""Prompts below which there is nothing to draw an interval from."""


class One:
    """What was found for one set.

    Attributes:
        name: Of the set.
        users: Prompts of the set that steer, and that are measured.
        scored: Influences and scores of every training sample.
        mask: m_c [n], 1 removed.
        theta: θ_c [d].
        predicted: First-order change of every surrogate of the set's own objective.
        before, after: Figures on the set's own test prompts, of θ* and of θ_c.
        change: Intervals of the paired difference, of the objective's metrics.
        shared: Figures on the set's test prompts of the adapter made for everyone.
    """

    def __init__(
        self, plan: Plan, sets: _Sets, name: str, answer: Answer, scores: Mapping[str, Scores]
    ) -> None:
        at = sets.judge[name].nonzero().flatten()
        side = plan.test.side.take(at)
        own = {"before": scores[""][at], "after": scores[name][at]}
        metrics = [term.metric for term in plan.objective.terms]
        predicted = answer.scored.predicted(answer.mask)
        self.name, self.users = name, (int(sets.steer[name].sum()), len(at))
        self.scored, self.mask, self.theta = answer.scored, answer.mask, answer.update.theta
        self.predicted = {metric: predicted[metric] for metric in sets.asked[name].names}
        self.before, self.after = (evaluate(each, side) for each in own.values())
        drawn = bootstrap(own, side, seed=plan.seed, metrics=metrics)
        self.change = drawn["after - before"]
        self.shared = evaluate(scores[EVERYONE][at], side)


@dataclass(frozen=True)
class Grouped:
    """All sets' requests; `everyone` is the first of them."""

    run: Run
    config: DebiasConfig
    objective: Objective
    found: list[One]
    rows: str
    """Where gradients came from, as `Evidence.source`."""
    diagnostics: list[dict[str, Any]]
    """Of everyone's request before the scores, and of every mask."""
    warnings: list[str]
    seconds: dict[str, float]

    def overlap(self, one: One) -> float:
        """Jaccard index of the set's mask and everyone's: removed by both, of removed by either."""
        first, second = self.found[0].mask, one.mask
        either = int((first | second).sum())
        return int((first & second).sum()) / either if either else 1.0


@dataclass(frozen=True)
class _Sets:
    """The sets' prompts, by name: which of them steer, which are measured, and what should fall."""

    steer: dict[str, Tensor]
    judge: dict[str, Tensor]
    asked: dict[str, Objective]


def debias_groups(run: Run, sets: Sequence[UserSet], config: DebiasConfig | None = None) -> Grouped:
    """A mask and an adapter for every set of users, and one for everyone.

    Args:
        run: From `load_run`; its model holds the trained adapter afterwards.
        sets: Of users; they may overlap.
        config: Objective, budget, rows and the rest, the same for all; the run's own where None.

    Raises:
        UsageError: A name occurs twice, or as `debias`.
        DataError: A set has too few prompts.
    """
    config = config or run.config.debias
    _check_names(sets)
    with collected_warnings() as said:
        plan = prepare(run, config, command="grouped")
        chosen = _chosen(plan, sets)
        diagnosed: list[Finding] = []

        def check(gradients: Gradients, space: Space) -> None:
            # Of everyone; a set's own mask is looked at by whoever uses it.
            assert isinstance(gradients, MetricGradients)
            own = {name: gradients[f"{name}[{EVERYONE}]"] for name in plan.objective.names}
            found = MetricGradients(own, gradients.scores, gradients.losses)
            diagnosed.extend(look(BEFORE, Facts(plan, found, space)))

        solved = solve(plan, lambda: _gradients(plan, chosen), check)
        with plan.clock.stage("updates"):
            asked = []
            for objective in chosen.asked.values():
                scored = solved.scored(objective=objective)
                mask = choose_mask(scored.score, config)
                diagnosed += look(MASK, Facts(plan, mask=mask))
                asked.append((scored, mask))
            answers = dict(zip(chosen.asked, solved.answers(asked), strict=True))
        with plan.clock.stage("evaluate"):
            thetas = {"": run.theta, **{n: a.update.theta for n, a in answers.items()}}
            scores, losses = {}, {}
            for name, theta in track(thetas.items(), len(thetas), "evaluate adapters"):
                run.engine.load(theta)
                evaluated = run.recommender.evaluate(plan.test.samples, config.batch)
                scores[name], losses[name] = evaluated[0], float(evaluated[1].mean())
        found = [One(plan, chosen, name, each, scores) for name, each in answers.items()]
    run.engine.load(run.theta)
    warned = [
        *said,
        *solved.evidence.warnings,
        *warnings(diagnosed, forced=config.force),
        *(text for each in answers.values() for text in each.warnings),
    ]
    for name, loss in losses.items():
        if (rise := loss / losses[""] - 1) > MAX_LOSS_RISE:
            warned.append(
                f"The adapter of {name} raises the test loss of all users by {rise:+.1%}, more "
                f"than {MAX_LOSS_RISE:.1%}."
            )
    return Grouped(
        run=run,
        config=config,
        objective=plan.objective,
        found=found,
        rows=solved.evidence.source,
        diagnostics=plain(diagnosed),
        warnings=list(dict.fromkeys(warned)),
        seconds=plan.clock.seconds,
    )


def _check_names(sets: Sequence[UserSet]) -> None:
    names = [EVERYONE, *(each.name for each in sets)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not sets:
        raise UsageError(
            "masks for sets of users were asked for",
            f"the name {twice[0]!r} occurs twice" if twice else "no set was named",
            f"Name at least one set, each once, and none {EVERYONE!r}",
        )


def _chosen(plan: Plan, sets: Sequence[UserSet]) -> _Sets:
    everyone = UserSet(EVERYONE, np.ones(plan.run.interactions.n_users, dtype=bool))
    chosen = _Sets({}, {}, {})
    for each in (everyone, *sets):
        for prompts, members in ((plan.valid, chosen.steer), (plan.test, chosen.judge)):
            members[each.name] = torch.from_numpy(each.member[prompts.samples.user])
            if (count := int(members[each.name].sum())) < LEAST:
                raise DataError(
                    f"the set of users {each.name!r} was to be debiased",
                    f"{count} of its users have a validation and a test prompt",
                    f"Name sets with at least {LEAST}",
                )
        member = chosen.steer[each.name]
        own = (
            replace(term, metric=Within(term.metric, member, f"{term.metric.name}[{each.name}]"))
            for term in plan.objective.terms
        )
        chosen.asked[each.name] = Objective(tuple(own))
        chosen.asked[each.name].check(plan.valid.side)
    return chosen


def _gradients(plan: Plan, sets: _Sets) -> MetricGradients:
    """Gradients of every set's metrics; the scores in the order of the validation prompts."""
    # Users of the same sets stand together; the set of everyone is in each batch anyway.
    member = torch.stack(list(sets.steer.values())[1:]).numpy()
    order = torch.from_numpy(np.lexsort(member[::-1]))
    metrics = [
        term.metric.ordered(order)
        for objective in sets.asked.values()
        for term in objective.terms
        if isinstance(term.metric, Within)
    ]
    prompts = plan.valid.take(order.numpy())
    found = metric_gradients(
        plan.run.recommender,
        plan.run.engine,
        prompts.samples,
        prompts.side,
        metrics,
        validation_loss=plan.needs_loss,
        batch_size=plan.config.batch,
    )
    found.scores = found.scores[order.argsort()]
    return found
