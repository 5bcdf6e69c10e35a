"""The figures of a request as one dictionary, and what a person should know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fudlr.common.device import versions
from fudlr.config import to_plain
from fudlr.evaluation import Measured, most_popular
from fudlr.metrics import METRICS, Null, Side, Statistics, bootstrap, permutation_null
from fudlr.metrics.accuracy import DIRECTIONS
from fudlr.pipeline.request import Answer, Solved

NEEDED = ("sample gradients", "metric gradients", "diagnostics", "scores", "update")
"""Stages without which there is no updated adapter; what the method costs."""
CHOOSING = ("metric gradients", "scores")
"""Of them, those that a mask follows from. Of a given one they tell what the report says of it."""


def cost(seconds: dict[str, float], training: float, *, given: bool = False) -> dict[str, Any]:
    """Seconds of the needed stages, and their share of the training's; `given` the mask, without
    those that choose one."""
    left_out = CHOOSING if given else ()
    stages = [stage for stage in NEEDED if stage in seconds and stage not in left_out]
    needed = sum(seconds[stage] for stage in stages)
    return {
        "seconds": needed,
        "stages": stages,
        "training_seconds": training or None,
        "share_of_training": needed / training if training else None,
    }


def summarise(solved: Solved, found: Answer, before: Measured, after: Measured) -> dict[str, Any]:
    """The figures of `summary.json` that need no further step."""
    plan, evidence = solved.plan, solved.evidence
    side, seed = plan.test.side, plan.seed
    with plan.clock.stage("intervals"):
        drawn = intervals({"before": before.statistics, "after": after.statistics}, side, seed)
        null = permutation_null(before.statistics, side, seed=seed)
    soft = {metric.name: metric.soft_key for metric in plan.metrics}
    predicted = {
        soft.get(name, name): before.metrics[soft.get(name, name)] + change
        for name, change in found.scored.predicted(found.mask).items()
    }
    config = plan.run.config.model_copy(update={"debias": plan.config})
    return {
        "objective": str(plan.objective),
        "before": before.metrics,
        "after": after.metrics,
        "predicted": predicted,
        "intervals": drawn,
        "null": plain_nulls(null),
        "most_popular": most_popular(side),
        "directions": directions(before.metrics, side.k),
        "samples": {"training": len(found.mask), "removed": int(found.mask.sum())},
        "update": {"rule": plan.update, "why": plan.why, **found.update.details},
        "solver": {
            "damping": evidence.damping,
            "steps": found.update.solution.steps,
            "residual": float(found.update.solution.residuals.max()),
            "score_steps": found.scored.influence.solution.steps,
            "score_residual": float(found.scored.influence.solution.residuals.max()),
            "relative_shift": found.update.relative_shift,
            **evidence.about,
        },
        "config": to_plain(config),
        "device": plan.run.where(),
        "versions": versions(),
        "seed": plan.run.config.seed,
    }


CHANGES = {"after": "change", "retrained": "retrained_change"}


def intervals(
    states: Mapping[str, Statistics], side: Side, seed: int
) -> dict[str, dict[str, list[float]]]:
    """Bootstrap intervals of `before` and further states, and of their paired changes from it."""
    named: dict[str, dict[str, list[float]]] = {}
    for name, values in bootstrap(states, side, seed=seed).items():
        later, _, first = name.partition(" - ")
        key = CHANGES[later] if first else name
        named[key] = {metric: [v.low, v.high] for metric, v in values.items()}
    return named


def plain_nulls(nulls: Mapping[str, Null]) -> dict[str, dict[str, Any]]:
    """Permutation nulls in the summary's form."""
    return {
        name: {"observed": n.observed, "mean": n.mean, "interval": [n.low, n.high], "p": n.p_value}
        for name, n in nulls.items()
    }


def directions(figures: dict[str, float], k: int) -> dict[str, str]:
    """`lower` or `higher`, which is better, for every figure."""
    better = {"val_loss": "lower", "test_loss": "lower", **DIRECTIONS}
    for metric in METRICS.values():
        word = "lower" if metric.lower_is_better else "higher"
        better[metric.soft_key] = better[metric.hard_key(k)] = word
    return {name: better[name] for name in figures if name in better}
