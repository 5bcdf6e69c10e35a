"""The steps in their order.

gradients of the training samples, or their store → gradients of the metrics → metrics before →
diagnostics → scores → mask → update → metrics after → trade-off curve → held-out users → summary
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fudlr.common.progress import StageClock, track
from fudlr.config import DebiasConfig
from fudlr.debias import heldout as heldout_users
from fudlr.debias.audit import Audit
from fudlr.debias.expected import expected
from fudlr.debias.summary import cost, summarise
from fudlr.diagnostics import (
    AFTER,
    BEFORE,
    GIVEN_AFTER,
    GIVEN_BEFORE,
    MASK,
    PARTS,
    Facts,
    Finding,
    keeps,
    look,
    plain,
    warnings,
)
from fudlr.evaluation import Measured, Prompts, measure
from fudlr.gradients.metric import MetricGradients
from fudlr.influence.mask import Mask, threshold_mask
from fudlr.pipeline.plan import Plan, collected_warnings, prepare, with_options
from fudlr.pipeline.request import Answer, Solved, choose_mask, solve
from fudlr.run import Run

CURVE = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
"""Budgets of the trade-off curve."""
CURVE_USERS = 500
"""Users, at random, that a point of the curve is measured on where there are more."""


@dataclass
class Result:
    """What `debias` found; `output.results.write_result` puts it into a folder.

    Attributes:
        run: What was debiased.
        config: With which options.
        answer: Scores, mask and update.
        before, after: Figures of the trained and of the updated adapter.
        valid, test: The prompts behind gradients and figures.
        summary: The dictionary of `summary.json`.
        curve: The trade-off curve's points.
    """

    run: Run
    config: DebiasConfig
    answer: Answer
    before: Measured
    after: Measured
    valid: Prompts
    test: Prompts
    summary: dict[str, Any]
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def mask(self) -> Tensor:
        """[n], 1 removed."""
        return self.answer.mask

    @property
    def weights(self) -> Tensor:
        """[n], of the training samples in their order: 1 kept, 0 removed."""
        return 1 - self.mask.float()

    @property
    def adapter(self) -> dict[str, Tensor]:
        """The updated LoRA matrices, named as in the files that peft saves."""
        return self.run.engine.unflatten(self.theta)

    @property
    def theta(self) -> Tensor:
        """The updated parameters [d]; the run's model holds them too."""
        return self.answer.update.theta


def debias(
    run: Run,
    config: DebiasConfig | None = None,
    *,
    curve: Sequence[float] = CURVE,
    heldout: bool = True,
    **options: Any,
) -> Result:
    """Find the samples that cause the bias and take their effect out of the run's adapter.

    Args:
        run: From `fudlr.load_run` or `fudlr.train_run`; its model holds the updated adapter
            afterwards.
        config: Options; the run's own where None.
        curve: Budgets of the trade-off curve; empty for none.
        heldout: Measure on users that the gradient did not see, by twofold cross-fitting.
        options: Single options that override the configuration:
            `objective="hellinger", budget=0.05`.

    Raises:
        UsageError: An unknown metric, curvature, solver or option, or a value out of range.
        FudlrError: As the steps raise.
    """
    return carry_out(run, with_options(config or run.config.debias, options), curve, heldout)


def carry_out(
    run: Run,
    config: DebiasConfig,
    curve: Sequence[float] = (),
    heldout: bool = False,
    *,
    given: Tensor | None = None,
    about: dict[str, int] | None = None,
) -> Result:
    """The same where the mask `given` [n] is chosen already; it is then audited, and what `about`
    says of it goes to the summary."""
    started = (time.perf_counter(), time.process_time())
    clock = StageClock()
    with collected_warnings() as said:
        plan = prepare(run, config, clock, "debias" if given is None else "forget")
        audit = None if given is None else Audit.of(run, given, config.batch)

        def figures(valid_losses: Tensor | None = None) -> Measured:
            prompts = (plan.valid, plan.test)
            found = measure(run.recommender, *prompts, config.batch, valid_losses=valid_losses)
            return found if audit is None else audit.of_adapter(found)

        with clock.stage("diagnostics"):  # which alone asks for it
            start_loss = _start_loss(plan)
        facts = Facts(plan, start_loss=start_loss)

        def measure_before(gradients: MetricGradients) -> None:
            """Once their pass has given the validation prompts' losses."""
            with clock.stage("evaluate before"):
                facts.before = figures(gradients.losses)

        solved, found, diagnosed = request(plan, facts, given, measure_before)
        before = facts.before
        assert before is not None
        run.engine.load(found.update.theta)
        with clock.stage("evaluate after"):
            after = figures()
        summary = summarise(solved, found, before, after)
        facts.after, facts.change = after, summary["intervals"]["change"]
        diagnosed += look(AFTER if given is None else {**AFTER, **GIVEN_AFTER}, facts)
        if audit is None:
            names = [term.metric.soft_key for term in plan.objective.terms]
            bend = next((each.measured for each in diagnosed if each.name == "bend"), None)
            summary["expected"] = expected(plan.update, bend, names, before.metrics, after.metrics)
        else:
            with clock.stage("audit"):
                distances = audit.distances({"trained": run.theta, "updated": found.update.theta})
            summary |= {"forget": about or {}, "verification": {"predictions": distances}}
        points: list[dict[str, Any]] = []
        if not (keeps(diagnosed) and not config.force):
            points, judged = _further(solved, found, before, curve, heldout)
            summary |= {"heldout": judged} if judged else {}
        run.engine.load(found.update.theta)
    summary["warnings"] = [
        *said,
        *solved.evidence.warnings,
        *found.warnings,
        *warnings(diagnosed, forced=config.force),
    ]
    summary["diagnostics"] = plain(diagnosed)
    summary["seconds"] = clock.seconds
    summary["cpu_seconds"] = clock.cpu_seconds
    summary["cost"] = {
        **cost(clock.seconds, run.train_seconds, given=given is not None),
        "command_seconds": time.perf_counter() - started[0],
        "command_cpu_seconds": time.process_time() - started[1],
    }
    return Result(run, config, found, before, after, plan.valid, plan.test, summary, points)


def request(
    plan: Plan,
    facts: Facts | None = None,
    given: Tensor | None = None,
    begin: Callable[[MetricGradients], object] = lambda _: None,
) -> tuple[Solved, Answer, list[Finding]]:
    """What cannot be left out: rows, metric gradients, scores, mask and update, each timed.

    The run's model holds θ* before and after.

    Args:
        plan: What is asked.
        facts: Where what diagnostics are read from is noted.
        given: The mask [n] where it is not to be chosen; diagnostics of the choice are left out.
        begin: Is shown the metrics' gradients before any diagnostic.

    Returns:
        What further masks follow from, the answer, and what the diagnostics found up to here.

    Raises:
        RefusedError: A diagnostic refuses the request.
    """
    facts = facts or Facts(plan)
    found: list[Finding] = []

    def check(gradients: Any, space: Any) -> None:
        facts.gradients, facts.space = gradients, space
        begin(gradients)
        found.extend(look(BEFORE if given is None else GIVEN_BEFORE, facts))

    parts = PARTS if given is None else 0  # for diagnostics of the choice
    solved = solve(plan, lambda: plan.gradients(plan.valid, parts), check)
    with plan.clock.stage("scores"):
        scored = solved.scored()
    with plan.clock.stage("update"):
        chosen = choose_mask(scored.score, plan.config) if given is None else Mask(given.bool())
        if keeps(found) and not plan.config.force:
            chosen = Mask(torch.zeros_like(chosen.remove))
        facts.mask = chosen
        found += look(MASK, facts)
        answer = solved.answer(scored, chosen)
    facts.update, facts.retraining = answer.update, solved.evidence.retraining
    return solved, answer, found


def _start_loss(plan: Plan) -> float:
    """Validation loss at θ₀; the model holds θ* afterwards."""
    run = plan.run
    run.engine.load(run.start)
    losses = run.recommender.losses(plan.valid.samples, plan.config.batch)
    run.engine.load(run.theta)
    return float(losses.mean())


def _further(
    solved: Solved, answer: Answer, before: Measured, budgets: Sequence[float], heldout: bool
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The trade-off curve's points and the held-out users' figures; their updates share every pass
    over the rows."""
    clock = solved.plan.clock
    # The request's own mask is among them where its budget is.
    masks = [threshold_mask(answer.scored.score, budget) for budget in budgets]
    asked = [(answer.scored, m) for m in masks if not torch.equal(m.remove, answer.mask)]
    with clock.stage("held-out users"):
        halves = heldout_users.asked(solved) if heldout else []
    with clock.stage("further updates"):
        answers = solved.answers([*asked, *halves])
    updated = iter(answers)
    found = [answer if torch.equal(m.remove, answer.mask) else next(updated) for m in masks]
    with clock.stage("trade-off curve"):
        points = _curve(solved, list(zip(budgets, found, strict=True)), before)
    with clock.stage("held-out users"):
        judged = heldout_users.judged(solved, answers[len(asked) :], before) if heldout else None
    return points, judged


def _curve(
    solved: Solved, answers: Sequence[tuple[float, Answer]], before: Measured
) -> list[dict[str, Any]]:
    """Figures of the updated adapter at each budget; `measured` is for real retraining.

    Of more users than `CURVE_USERS` some are asked, the same at each budget: what a budget changes
    for them is added to everybody's figures, since what users differ by is more than that.
    """
    plan = solved.plan
    if not answers:
        return []
    run, batch, valid, test, here = plan.run, plan.config.batch, plan.valid, plan.test, before
    if len(test.samples) > CURVE_USERS:
        generator = torch.Generator().manual_seed(plan.seed)
        some = torch.randperm(len(test.samples), generator=generator)[:CURVE_USERS].numpy()
        valid, test = valid.take(some), test.take(some)
        run.engine.load(run.theta)
        here = measure(run.recommender, valid, test, batch)
    points: list[dict[str, Any]] = []
    for budget, found in track(answers, description="curve"):
        run.engine.load(found.update.theta)
        figures = measure(run.recommender, valid, test, batch).metrics
        points.append(
            {
                "budget": budget,
                "removed": int(found.mask.sum()),
                "users": len(test.samples),
                "predicted": {
                    name: before.metrics[name] + value - here.metrics[name]
                    for name, value in figures.items()
                    if name in here.metrics
                },
                "measured": None,
            }
        )
    return points
