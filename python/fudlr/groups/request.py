"""One request for each set of users, from one gradient pass and one solve.

    s_ic = (1/n) g_iᵀ H⁻¹ ∇F_c,   F_c the objective on the prompts of set c alone
    θ_c  = θ* + (1/n) H⁻¹ Gᵀ m_c,   m_c the mask of the scores s_c

Rows of gradients, the forward pass over all users and the solve are shared. The prompts are put in
order by the sets that they belong to, and a batch goes back only for the sets that it has users of.
So disjoint sets cost one backward pass over the users together, however many they are, beside that
of everyone and of the loss; a batch that two sets share goes back twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fudlr.common.errors import DataError, UsageError
from fudlr.common.progress import StageClock, track
from fudlr.config import DebiasConfig
from fudlr.evaluation import Prompts
from fudlr.gradients.metric import MetricGradient, metric_gradients
from fudlr.groups.sets import UserSet
from fudlr.metrics import Objective, bootstrap, evaluate
from fudlr.metrics.resample import Interval
from fudlr.metrics.within import Within
from fudlr.pipeline.evidence import gather, solvers
from fudlr.pipeline.job import Job, collected_warnings, prepare
from fudlr.pipeline.request import Scored, answer, choose_mask, influences, weigh_rows
from fudlr.run import Run

EVERYONE = "everyone"
"""Name of the set of all users, which is always there to compare with."""
LEAST = 2
"""Prompts below which there is nothing to draw an interval from."""


@dataclass(frozen=True)
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

    name: str
    users: tuple[int, int]
    scored: Scored
    mask: Tensor
    theta: Tensor
    predicted: dict[str, float]
    before: dict[str, float]
    after: dict[str, float]
    change: dict[str, Interval]
    shared: dict[str, float]


@dataclass(frozen=True)
class Grouped:
    """All sets' requests; `everyone` is the first of them."""

    run: Run
    config: DebiasConfig
    objective: Objective
    found: list[One]
    backward: int
    """Prompts that went back through the model, counted once for each metric that saw them."""
    warnings: list[str]
    seconds: dict[str, float]

    def overlap(self, one: One) -> float:
        """Jaccard index of the set's mask and everyone's: removed by both, of removed by either."""
        first, second = self.found[0].mask > 0, one.mask > 0
        either = int((first | second).sum())
        return int((first & second).sum()) / either if either else 1.0


def debias_groups(run: Run, sets: Sequence[UserSet], config: DebiasConfig | None = None) -> Grouped:
    """A mask and an adapter for every set of users, and one for everyone.

    Args:
        run: From `load_run`; its model holds the trained adapter afterwards.
        sets: Of users; they may overlap.
        config: Objective, budget, rows and the rest, the same for all; the run's own where None.

    Raises:
        UsageError: A name occurs twice, polish is asked for, or as `debias`.
        DataError: A set has too few prompts.
    """
    config = config or run.config.debias
    _check_names(sets)
    if config.polish:
        raise UsageError(
            "masks for sets of users were asked for",
            "polish is for one mask",
            "Set debias.polish to false",
        )
    with collected_warnings() as said:
        job = prepare(run, config, StageClock())
        everyone = UserSet(EVERYONE, np.ones(run.interactions.n_users, dtype=bool))
        chosen = [everyone, *sets]
        steer = {each.name: _members(each, job.valid) for each in chosen}
        judge = {each.name: _members(each, job.test) for each in chosen}
        asked = {name: _within(job.objective, name, member) for name, member in steer.items()}
        for objective in asked.values():
            objective.check(job.valid.side)
        run.engine.load(run.theta)
        with job.clock.stage("sample gradients"):
            gathered = gather(job)
        with job.clock.stage("metric gradients"):
            gradients, backward = _gradients(job, asked, steer)
        with job.clock.stage("scores"):
            evidence = solvers(job, gathered)
            shared = influences(evidence.space, gradients, evidence.solve)
        with job.clock.stage("updates"):
            answers = {
                name: answer(scored, choose_mask(scored.score, config), evidence.remove)
                for name, objective in asked.items()
                for scored in [weigh_rows(evidence.space, shared, gradients, objective, config)]
            }
        with job.clock.stage("evaluate"):
            thetas = {"": run.theta, **{n: a.update.theta for n, a in answers.items()}}
            scores = _scores(job, thetas)
        found = []
        for name, each in answers.items():
            at = judge[name].nonzero().flatten()
            side = job.test.side.take(at)
            own = {"before": scores[""][at], "after": scores[name][at]}
            drawn = bootstrap(
                own, side, seed=config.seed, metrics=[t.metric for t in job.objective.terms]
            )
            predicted = each.scored.predicted(each.mask)
            found.append(
                One(
                    name,
                    (int(steer[name].sum()), len(at)),
                    each.scored,
                    each.mask,
                    each.update.theta,
                    {n: v for n, v in predicted.items() if n in asked[name].names},
                    evaluate(own["before"], side),
                    evaluate(own["after"], side),
                    drawn["after - before"],
                    evaluate(scores[EVERYONE][at], side),
                )
            )
    run.engine.load(run.theta)
    warned = [*said, *evidence.warnings, *(w for a in answers.values() for w in a.warnings)]
    return Grouped(
        run, config, job.objective, found, backward, list(dict.fromkeys(warned)), job.clock.seconds
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


def _members(each: UserSet, prompts: Prompts) -> Tensor:
    member = torch.from_numpy(each.member[prompts.samples.user])
    if int(member.sum()) < LEAST:
        raise DataError(
            f"the set of users {each.name!r} was to be debiased",
            f"{int(member.sum())} of its users have a validation and a test prompt",
            f"Name sets with at least {LEAST}",
        )
    return member


def _within(objective: Objective, label: str, member: Tensor) -> Objective:
    terms = (replace(t, metric=Within(t.metric, member, label)) for t in objective.terms)
    return Objective(tuple(terms))


def _gradients(
    job: Job, asked: dict[str, Objective], steer: dict[str, Tensor]
) -> tuple[dict[str, MetricGradient], int]:
    """Gradients of every set's metrics, and the prompts that went back for them."""
    # Users of the same sets stand together; the set of everyone is in each batch anyway.
    member = torch.stack(list(steer.values())[1:]).numpy()
    order = torch.from_numpy(np.lexsort(member[::-1]))
    metrics = [
        term.metric.ordered(order)
        for objective in asked.values()
        for term in objective.terms
        if isinstance(term.metric, Within)
    ]
    prompts = job.valid.take(order.numpy())
    counted = _Counted(job.run.engine)
    found = metric_gradients(
        job.run.recommender,
        counted,
        prompts.samples,
        prompts.side,
        metrics,
        validation_loss=job.needs_loss,
        batch_size=job.config.batch,
    )
    return dict(found), counted.prompts


class _Counted:
    """An engine that counts what goes back through it."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.prompts = 0

    def deferred_vjp(self, forward: Any, batch: Any) -> Any:
        way = self._engine.deferred_vjp(forward, batch)
        return _CountedWay(self, way)


class _CountedWay:
    def __init__(self, counter: _Counted, way: Any) -> None:
        self._counter, self._way = counter, way

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self._way.outputs
        return found

    @property
    def held(self) -> int:
        return int(self._way.held)

    def vjp(self, cotangents: tuple[Tensor, ...]) -> Tensor:
        k, n = cotangents[0].shape[:2]
        self._counter.prompts += k * n
        found: Tensor = self._way.vjp(cotangents)
        return found


def _scores(job: Job, thetas: dict[str, Tensor]) -> dict[str, Tensor]:
    """Test scores [n, M] of every adapter."""
    found = {}
    for name, theta in track(thetas.items(), len(thetas), "evaluate adapters"):
        job.run.engine.load(theta)
        found[name] = job.run.recommender.evaluate(job.test.samples, job.config.batch)[0]
    return found
