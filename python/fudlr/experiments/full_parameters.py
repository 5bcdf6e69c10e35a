"""All parameters instead of LoRA alone, the paper's open question, on a model small enough.

The same data, base model, order of batches and λ; once LoRA is trained, once every weight. The
method is the same on both sides, with the parameters that were trained for θ:

    s_i = (1/n) g_iᵀ H⁻¹ ∇F,   θ(m) = θ* + (1/n) H⁻¹ Gᵀ m,   H = GᵀG/n + damping

solved by conjugate gradients until little is left. Each is held against real retraining of what it
updates: the change of the metric, how far the closed form ends from retraining, in the parameters
and in the scores of the test prompts,

    ‖x(closed form) − x(retrained)‖ / ‖x(retrained) − x(trained)‖

the linear datamodeling score over random removals, and CPU seconds. Across the sides: the rank
correlation of the influences, and what retraining without the *other* side's mask gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from torch import Tensor

from fudlr.common.progress import StageClock
from fudlr.data import fetch_ml100k
from fudlr.debias.steps import request
from fudlr.evaluation import Measured, measure
from fudlr.experiments.base import Cells, Experiment, Options, Outcome, Record
from fudlr.experiments.likeness import correlations, cosine
from fudlr.experiments.runner import trained
from fudlr.experiments.whole_model import whole_run
from fudlr.pipeline.job import prepare
from fudlr.pipeline.request import Answer
from fudlr.run import Run
from fudlr.verify import removal, retrain
from fudlr.verify.changes import measure_changes
from fudlr.verify.lds import random_removals

RATE = 1e-3
"""Learning rate of all parameters; LoRA's is `train.learning_rate`."""
REMOVALS, SMALL_REMOVALS, SHARE = 12, 3, 0.1
SIDES = ("LoRA", "all parameters")
FIGURES = ("arp", "arp_soft", "ndcg", "test_loss")
NEAR = 0.25
"""How far from 1 the closed form's share of retraining's change may be."""
AGREE = 0.5
"""Least Spearman correlation of the two sides' influences."""


def _cells(options: Options) -> Mapping[str, Callable[[], Record]]:
    return {f"seed {seed}": partial(_of_seed, options, seed) for seed in options.seeds}


def _of_seed(options: Options, seed: int) -> Record:
    kept = options.out / "retrainings"
    if options.config.data.source == "ml-100k":
        fetch_ml100k()
    adapter = trained(options, {"seed": seed}, f"seed-{seed}")
    runs = {SIDES[0]: adapter, SIDES[1]: whole_run(adapter, RATE, kept)}
    answers, costs = {}, {}
    for side, run in runs.items():
        answers[side], costs[side] = _answer(run)
    sides = {}
    for side, run in runs.items():
        (other,) = (answers[name].mask for name in SIDES if name != side)
        # Workers load a run from its folder, which knows LoRA alone: both train in this process.
        sides[side] = _side(run, answers[side], other, options, kept) | {"cpu_seconds": costs[side]}
    masks = [answers[side].mask for side in SIDES]
    influences = [_influence(answers[side]) for side in SIDES]
    return {
        "sides": sides,
        "influence": correlations(*influences),
        "overlap": float((masks[0] & masks[1]).sum() / max(int(masks[0].sum()), 1)),
    }


def _influence(answered: Answer) -> Tensor:
    """On the metric that steers, [n]."""
    return answered.scored.influence.values[:, 0]


def _answer(run: Run) -> tuple[Answer, dict[str, float]]:
    """The request's answer, and its CPU seconds by stage."""
    clock = StageClock()
    job = prepare(run, run.config.debias, clock)
    run.engine.load(run.theta)
    _, answered, _ = request(job)
    return answered, clock.cpu_seconds


def _side(run: Run, answered: Answer, other: Tensor, options: Options, kept: Path) -> Record:
    """What one side's closed form and retrainings give."""
    config = run.config.debias
    jobs = [removal("without our mask", answered.mask), removal("without the other's", other)]
    ours, crossed = retrain(run, jobs, kept)
    job = prepare(run, config, StageClock())

    def figures(theta: Tensor) -> Measured:
        run.engine.load(theta)
        return measure(run.recommender, job.valid, job.test, config.batch)

    states = {
        "trained": run.theta,
        "closed form": answered.update.theta,
        "retrained": ours.theta,
        "retrained without the other's mask": crossed.theta,
    }
    found = {state: figures(theta) for state, theta in states.items()}
    name = job.objective.names[0]
    masks = random_removals(
        len(other), SMALL_REMOVALS if options.small else REMOVALS, SHARE, run.config.seed
    )
    start = time.process_time()
    changes = measure_changes(
        run, {name: _influence(answered)}, masks, "random samples", folder=kept
    )
    seen = job.test.side.seen
    scores = {}
    for state, theta in states.items():
        run.engine.load(theta)
        matrix, _ = run.recommender.evaluate(job.test.samples, config.batch)
        scores[state] = _centred(matrix, seen)
    return {
        "parameters": run.engine.d,
        "samples": len(other),
        "removed": int(answered.mask.sum()),
        "losses": [run.losses[0], run.losses[-1]],
        "residual": float(answered.update.solution.residuals.max()),
        "figures": {state: _figures(each, job.test.side.k) for state, each in found.items()},
        "distance": _distance(states),
        "cosine": cosine(answered.update.theta - run.theta, ours.theta - run.theta),
        "score_distance": _distance(scores),
        "agreement": changes.agreements(run.config.seed)[name],
        "retraining_cpu_seconds": ours.cpu_seconds,
        "removals_cpu_seconds": time.process_time() - start,
    }


def _figures(found: Measured, k: int) -> dict[str, float]:
    return {key: found.metrics[f"ndcg@{k}" if key == "ndcg" else key] for key in FIGURES}


def _centred(scores: Tensor, seen: Tensor) -> Tensor:
    """Scores of unseen items less their mean a prompt, which no softmax sees, flat."""
    unseen = (~seen).double()
    means = (scores.double() * unseen).sum(1, keepdim=True) / unseen.sum(1, keepdim=True)
    return ((scores - means) * unseen).flatten()


def _distance(states: Mapping[str, Tensor]) -> float:
    """‖closed form − retrained‖ / ‖retrained − trained‖."""
    away = states["closed form"] - states["retrained"]
    return float(away.norm() / (states["retrained"] - states["trained"]).norm())


def _change(side: Mapping[str, Any], state: str, key: str = "arp_soft") -> float:
    return float(side["figures"][state][key] - side["figures"]["trained"][key])


def _ratio(side: Mapping[str, Any]) -> float:
    """The closed form's change of the surrogate over retraining's, on the test prompts."""
    return _change(side, "closed form") / _change(side, "retrained")


def _request_seconds(side: Mapping[str, Any]) -> float:
    return float(sum(s for stage, s in side["cpu_seconds"].items() if stage != "prepare"))


def _outcomes(cells: Cells) -> list[Outcome]:
    lines = [[cell["sides"][side] for side in SIDES] for cell in cells.values()]
    ratios = [[_ratio(side) for side in line] for line in lines]
    away = [[side["score_distance"] for side in line] for line in lines]
    spearman = [cell["influence"]["spearman"] for cell in cells.values()]
    crossed = [
        [
            _change(side, "retrained without the other's mask") / _change(side, "retrained")
            for side in line
        ]
        for line in lines
    ]

    def pairs(values: Sequence[Sequence[float]], form: str) -> str:
        return "; ".join(f"{a:{form}} and {b:{form}}" for a, b in values)

    return [
        Outcome(
            f"the closed form gives retraining's change of the metric within {NEAR:.0%}, with LoRA "
            "and with all parameters",
            all(abs(each - 1) <= NEAR for line in ratios for each in line),
            pairs(ratios, ".2f"),
        ),
        Outcome(
            "with all parameters the closed form ends nearer to retraining, in the scores, than "
            "with LoRA",
            all(whole < adapter for adapter, whole in away),
            pairs(away, ".2f"),
        ),
        Outcome(
            f"the two rank samples alike: Spearman of the influences at least {AGREE:g}",
            all(each >= AGREE for each in spearman),
            ", ".join(f"{each:.2f}" for each in spearman),
        ),
        Outcome(
            "a mask found with the other parameters moves the metric at least half as far, "
            "retrained",
            all(each >= 0.5 for line in crossed for each in line),
            pairs(crossed, ".2f"),
        ),
    ]


def _rows(cells: Cells) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [
        (
            "",
            "parameters",
            "ARP",
            "closed form",
            "retrained",
            "surrogate's share",
            "NDCG: closed",
            "retrained",
            "distance",
            "in scores",
            "LDS",
            "request CPU s",
            "retraining CPU s",
        )
    ]
    for name, cell in cells.items():
        for kind in SIDES:
            side = cell["sides"][kind]
            figures = side["figures"]
            states = ("closed form", "retrained")
            rows.append(
                (
                    f"{name}, {kind}",
                    f"{side['parameters']:,}",
                    f"{figures['trained']['arp']:.2f}",
                    *(f"{figures[state]['arp']:.2f}" for state in states),
                    f"{_ratio(side):.0%}",
                    *(f"{figures[state]['ndcg']:.4f}" for state in states),
                    f"{side['distance']:.2f}",
                    f"{side['score_distance']:.2f}",
                    f"{side['agreement']['spearman']:.2f}",
                    f"{_request_seconds(side):.1f}",
                    f"{side['retraining_cpu_seconds']:.1f}",
                )
            )
    return rows


def _plot(cells: Cells, axes: Axes) -> None:
    for place, kind in enumerate(SIDES):
        sides = [cell["sides"][kind] for cell in cells.values()]
        for state, mark in (("closed form", "o"), ("retrained", "x")):
            values = [100 * _change(side, state) / side["figures"]["trained"]["arp_soft"]
                      for side in sides]  # fmt: skip
            places = [place] * len(values)
            axes.plot(places, values, mark, color=f"C{place}", label=f"{kind}, {state}")
    axes.set_xticks(range(len(SIDES)), SIDES)
    axes.set_ylabel("surrogate of ARP, change in %")
    axes.legend()


EXPERIMENT = Experiment(
    "full_parameters",
    "Does the method do for all parameters what it does for LoRA, and find the same samples?",
    _cells,
    _outcomes,
    _rows,
    _plot,
    defaults={
        "data.train_samples": 2000,
        "model.hidden": 32,
        "model.layers": 2,
        "model.heads": 2,
        "model.kv_heads": 2,
        "model.intermediate": 64,
        "record.ride": False,
        "debias.rows": "memory",
        "debias.max_steps": 60,
    },
)
