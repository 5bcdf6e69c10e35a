"""Metrics of the list that users see, which have no gradient: estimated, or smoothed.

Three discretised metrics, each steered in two ways:

    smooth   the gradient of a differentiable stand-in, on the catalogue softmax
    drawn    the score-function estimate of `metrics.score_function`, of the metric itself on
             lists drawn from the scores

compared in the adapter's gradient (cosine), in the influence of the samples (correlations, beside
those between two independent halves of the draws: what noise alone costs), and in what the hard
metric itself does when the samples of the lowest scores are removed, in closed form and by real
retraining. The estimate's variance is measured against the number of draws,

    v_R = Σ_s ‖g_R,s − ḡ_R‖² / (S − 1) / ‖ḡ‖²

over S seeds, ḡ being the mean of the estimates of most draws; with control variates, without, and
with the metric as one number for all prompts, of which none knows its own part.
A fourth rule is flat. It has to be refused with its reason, and not to crash.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean

import torch
from matplotlib.axes import Axes
from torch import Tensor

from fudlr.common.errors import FudlrError
from fudlr.common.progress import StageClock
from fudlr.data import fetch_ml100k
from fudlr.debias.steps import request
from fudlr.evaluation import Prompts
from fudlr.experiments.base import Cells, Experiment, Options, Outcome, Record
from fudlr.experiments.likeness import correlations, cosine
from fudlr.experiments.runner import trained
from fudlr.gradients.metric import VALIDATION_LOSS, MetricGradient
from fudlr.metrics import (
    METRICS,
    DrawnLists,
    Metric,
    Objective,
    Side,
    Term,
    catalogue_softmax,
    from_function,
    from_lists,
    top_k,
)
from fudlr.pipeline.evidence import Evidence, gather, solvers
from fudlr.pipeline.job import Job, prepare
from fudlr.pipeline.request import Answer, answer, choose_mask, score_samples
from fudlr.run import Run
from fudlr.verify import removal, retrain

QUOTA, WIDTH = 0.3, 0.05
"""The business rule: at least this share of a list is tail. Its smooth stand-in is a sigmoid of the
expected share, of this width."""
DRAWS, SMALL_DRAWS = (8, 32, 128), (4, 8)
SEEDS, SMALL_SEEDS = 4, 2
WAYS = ("smooth", "drawn")
AGREE = 0.5
"""Least Spearman correlation of the two ways' influences."""


def quota_met(top: Tensor, side: Side) -> Tensor:
    """[n] bool: whether the list keeps the rule."""
    return side.tail[top].double().mean(1) >= QUOTA - 1e-9


def quota_expected(scores: Tensor, side: Side) -> Tensor:
    """The smooth stand-in: σ((expected tail share − quota) / width), mean over users."""
    p = catalogue_softmax(scores, side.seen)
    share = p @ side.tail.to(p.dtype)
    return torch.sigmoid((share - QUOTA) / WIDTH).mean()


@dataclass(frozen=True)
class Rule:
    """A metric of lists, higher is better, with its smooth stand-in."""

    smooth: Metric
    hard: Metric | Callable[[Tensor, Side], Tensor]


def rules() -> dict[str, Rule]:
    """The three metrics that are compared, by the name they have here."""
    quota = from_function("quota", quota_expected, lower_is_better=False)
    return {
        "coverage": Rule(METRICS["coverage"], METRICS["coverage"]),
        "tail share": Rule(METRICS["aplt"], METRICS["aplt"]),
        "quota": Rule(quota, quota_met),
    }


def _number(hard: Metric | Callable[[Tensor, Side], Tensor]) -> Callable[[Tensor, Side], Tensor]:
    """The same metric as a function that gives one number."""
    metric = hard if isinstance(hard, Metric) else from_lists("number", hard, lower_is_better=False)
    return metric.hard


def _cells(options: Options) -> Mapping[str, Callable[[], Record]]:
    cells: dict[str, Callable[[], Record]] = {}
    for seed in options.seeds:
        for name in rules():
            cells[f"{name}, seed {seed}"] = partial(_compare, options, seed, name)
        cells[f"flat, seed {seed}"] = partial(_flat, options, seed)
    return cells


def _run(options: Options, seed: int) -> Run:
    if options.config.data.source == "ml-100k":
        fetch_ml100k()
    return trained(options, {"seed": seed}, f"seed-{seed}")


def _compare(options: Options, seed: int, name: str) -> Record:
    run, rule = _run(options, seed), rules()[name]
    draws = SMALL_DRAWS if options.small else DRAWS
    seeds = range(SMALL_SEEDS if options.small else SEEDS)

    def drawn(count: int, at: int, control: bool = True) -> DrawnLists:
        label = f"drawn_{count}_{at}{'' if control else '_plain'}"
        return DrawnLists(label, rule.hard, False, draws=count, seed=at, control=control)

    families = {str(count): [drawn(count, at) for at in seeds] for count in draws}
    # Of as many draws as the family in the middle, so that the two can be compared.
    plain = draws[len(draws) // 2]
    families["without control"] = [drawn(plain, at, control=False) for at in seeds]
    families["one number"] = [
        DrawnLists(f"drawn_{plain}_{at}_number", _number(rule.hard), False, draws=plain, seed=at)
        for at in seeds
    ]
    asked = [metric for family in families.values() for metric in family]
    job = prepare(run, run.config.debias, StageClock())
    job = replace(job, metrics=[rule.smooth, *asked])
    run.engine.load(run.theta)
    found = job.gradients(job.valid)
    best = families[str(draws[-1])]
    halves = [_mean(found, best[: len(best) // 2]), _mean(found, best[len(best) // 2 :])]
    gradients = {"smooth": found[rule.smooth.name], "drawn": _mean(found, best)}
    influence, answers = _answers(job, rule, gradients, halves, found.get(VALIDATION_LOSS))
    masks = {way: answers[way].mask for way in WAYS}
    jobs = [removal(f"without the {way} mask", masks[way]) for way in WAYS]
    done = retrain(run, jobs, options.out / "retrainings", options.processes)
    states = {"trained": run.theta}
    for way, retrained in zip(WAYS, done, strict=True):
        states[f"{way}, closed form"] = answers[way].update.theta
        states[f"{way}, retrained"] = retrained.theta
    hard = from_lists(name, rule.hard, lower_is_better=False)
    size = gradients["drawn"].gradient.double().norm().square()
    return {
        "metric": name,
        "seed": seed,
        "values": {way: each.value for way, each in gradients.items()},
        "cosine": cosine(gradients["smooth"].gradient, gradients["drawn"].gradient),
        "cosine_of_halves": cosine(halves[0].gradient, halves[1].gradient),
        "influence": influence,
        "variance": {
            label: float(_stacked(found, family).var(0).sum() / size)
            for label, family in families.items()
        },
        "draws_without_control": plain,
        "removed": {way: int(masks[way].sum()) for way in WAYS},
        "overlap": float((masks["smooth"] & masks["drawn"]).sum() / masks["drawn"].sum()),
        "hard": {state: _hard(run, job, hard, theta) for state, theta in states.items()},
        "cpu_seconds": _times(rule, drawn(plain, 0), found.scores, job.valid.side),
    }


def _answers(
    job: Job,
    rule: Rule,
    gradients: dict[str, MetricGradient],
    halves: Sequence[MetricGradient],
    loss: MetricGradient | None,
) -> tuple[dict[str, dict[str, float]], dict[str, Answer]]:
    """How alike the influences are, and the answer of each way."""
    evidence = solvers(job, gather(job))
    accuracy = {} if loss is None else {VALIDATION_LOSS: loss}
    answers = {
        way: _answer(job, evidence, rule.smooth, gradient, accuracy)
        for way, gradient in {**gradients, "first": halves[0], "second": halves[1]}.items()
    }
    columns = {way: each.scored.influence.of(rule.smooth.name) for way, each in answers.items()}
    alike = {
        "smooth and drawn": correlations(columns["smooth"], columns["drawn"]),
        "halves of the draws": correlations(columns["first"], columns["second"]),
    }
    return alike, answers


def _answer(
    job: Job,
    evidence: Evidence,
    metric: Metric,
    gradient: MetricGradient,
    accuracy: Mapping[str, MetricGradient],
) -> Answer:
    """Scores, mask and update for one gradient of the metric, whichever way it came about."""
    objective = Objective((Term(1.0, metric),))
    given = {metric.name: gradient, **accuracy}
    scored = score_samples(evidence.space, given, objective, evidence.solve, job.config)
    return answer(scored, choose_mask(scored.score, job.config), evidence.remove)


def _flat(options: Options, seed: int) -> Record:
    """A request for a rule that every list keeps."""
    run = _run(options, seed)
    always = from_lists("always", lambda top, side: torch.ones(len(top)), lower_is_better=False)
    job = prepare(run, run.config.debias, StageClock())
    job = replace(job, objective=Objective((Term(1.0, always),)), metrics=[always])
    run.engine.load(run.theta)
    try:
        request(job)
    except FudlrError as error:
        return {"metric": "flat", "seed": seed, "refused": str(error)}
    return {"metric": "flat", "seed": seed, "refused": None}


def _stacked(found: Mapping[str, MetricGradient], family: Sequence[Metric]) -> Tensor:
    """The family's gradients, [S, d] float64."""
    return torch.stack([found[metric.name].gradient.double() for metric in family])


def _mean(found: Mapping[str, MetricGradient], family: Sequence[Metric]) -> MetricGradient:
    """The estimate of all the family's draws together."""
    value = mean(found[metric.name].value for metric in family)
    gradient = _stacked(found, family).mean(0)
    return MetricGradient(value, gradient.to(found[family[0].name].gradient))


def _hard(run: Run, job: Job, metric: Metric, theta: Tensor) -> dict[str, float]:
    """The hard value on the prompts that steered, and on those that judge."""
    run.engine.load(theta)

    def of(prompts: Prompts) -> float:
        scores, _ = run.recommender.evaluate(prompts.samples, job.config.batch)
        return float(metric.hard(top_k(scores, prompts.side), prompts.side))

    return {"valid": of(job.valid), "test": of(job.test)}


def _times(rule: Rule, drawn: DrawnLists, scores: Tensor, side: Side) -> dict[str, float]:
    """CPU seconds of either way's gradient in the scores."""
    found = {}
    for way, metric in (("smooth", rule.smooth), ("drawn", drawn)):
        leaf = scores.detach().clone().requires_grad_()
        start = time.process_time()
        torch.autograd.grad(metric.surrogate(leaf, side), leaf)
        found[way] = time.process_time() - start
    return found


def _compared(cells: Cells) -> dict[str, Record]:
    return {name: cell for name, cell in cells.items() if cell["metric"] != "flat"}


def _change(cell: Record, state: str, prompts: str = "test") -> float:
    return float(cell["hard"][state][prompts] - cell["hard"]["trained"][prompts])


def _outcomes(cells: Cells) -> list[Outcome]:
    rows = list(_compared(cells).values())
    falls = [_fall(cell) for cell in rows]
    controls = [
        [
            cell["variance"][other] / cell["variance"][str(cell["draws_without_control"])]
            for other in ("without control", "one number")
        ]
        for cell in rows
    ]
    spearman = [cell["influence"]["smooth and drawn"]["spearman"] for cell in rows]
    further = [[_change(cell, f"{way}, retrained") for way in WAYS] for cell in rows]
    flat = [cell["refused"] for cell in cells.values() if cell["metric"] == "flat"]
    labels = [f"{cell['metric']} {cell['seed']}" for cell in rows]

    def listed(values: Sequence[str]) -> str:
        return "; ".join(f"{a}: {b}" for a, b in zip(labels, values, strict=True))

    return [
        Outcome(
            "the estimate's variance falls as one over the draws, within a factor of two",
            all(0.5 <= found / expected <= 2 for found, expected in falls),
            listed([f"{found:.1f} times, {expected:.0f} expected" for found, expected in falls]),
        ),
        Outcome(
            "its control variates lower the variance, and so does a value of each prompt's own",
            all(each > 1 for pair in controls for each in pair),
            listed([f"{none:.3g} and {number:.3g} times" for none, number in controls]),
        ),
        Outcome(
            f"the two ways rank samples alike: Spearman of their influences at least {AGREE:g}",
            all(each >= AGREE for each in spearman),
            listed(
                [
                    f"{each:.2f} (halves of the draws "
                    f"{cell['influence']['halves of the draws']['spearman']:.2f})"
                    for each, cell in zip(spearman, rows, strict=True)
                ]
            ),
        ),
        Outcome(
            "retrained without its mask, the drawn way moves the hard metric on the test prompts "
            "at least as far as the smooth one",
            all(drawn >= smooth for smooth, drawn in further),
            listed([f"{drawn:+.4f} against {smooth:+.4f}" for smooth, drawn in further]),
        ),
        Outcome(
            "a flat rule is refused with its reason",
            all(each and "gradient" in each for each in flat),
            "; ".join(str(each)[:120] for each in flat),
        ),
    ]


def _fall(cell: Record) -> tuple[float, float]:
    """How many times smaller the variance is with the most draws, and would be as 1/R."""
    counts = sorted(int(label) for label in cell["variance"] if label.isdigit())
    fewest, most = counts[0], counts[-1]
    return cell["variance"][str(fewest)] / cell["variance"][str(most)], most / fewest


def _rows(cells: Cells) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        (
            "metric",
            "cosine",
            "of halves",
            "Spearman",
            "of halves",
            "variance by draws",
            "masks alike",
            "hard, test",
            "smooth: closed",
            "retrained",
            "drawn: closed",
            "retrained",
        )
    ]
    for name, cell in _compared(cells).items():
        alike = cell["influence"]
        rows.append(
            (
                name,
                f"{cell['cosine']:.2f}",
                f"{cell['cosine_of_halves']:.2f}",
                f"{alike['smooth and drawn']['spearman']:.2f}",
                f"{alike['halves of the draws']['spearman']:.2f}",
                ", ".join(f"{label}: {v:.3g}" for label, v in cell["variance"].items()),
                f"{cell['overlap']:.0%}",
                f"{cell['hard']['trained']['test']:.4f}",
                *(
                    f"{_change(cell, f'{way}, {state}'):+.4f}"
                    for way in WAYS
                    for state in ("closed form", "retrained")
                ),
            )
        )
    return rows


def _plot(cells: Cells, axes: Axes) -> None:
    for name, cell in _compared(cells).items():
        counts = sorted(int(label) for label in cell["variance"] if label.isdigit())
        axes.loglog(counts, [cell["variance"][str(c)] for c in counts], "o-", label=name)
    axes.set_xlabel("lists drawn for each user")
    axes.set_ylabel("variance of the gradient, relative")
    axes.legend()


EXPERIMENT = Experiment(
    "not_differentiable",
    "Can metrics of lists that have no gradient be steered, and how far from smooth stand-ins?",
    _cells,
    _outcomes,
    _rows,
    _plot,
    defaults={"debias.rows": "memory"},
)
