"""Retraining with and without over several seeds: how much of the change is the seed's.

For each seed, the order of the samples is the same with and without. The mask stays that of the
result, which was found at the run's own seed. The shifts of parameters are compared too: where
retraining goes another way in another order, no update can be near to all of them, and one that is
as near to the run's own retraining as another order's is as near as the samples alone decide.
"""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from torch import Tensor

from fudlr.verify.case import Case
from fudlr.verify.retraining import Job, removal


def seeds(case: Case) -> dict[str, Any] | None:
    """By metric the change that each seed's retraining gave, their mean and spread; the shifts."""
    if not case.checks.seeds:
        return None
    configs = [case.run.config.train.model_copy(update={"seed": s}) for s in case.checks.seeds]
    jobs = []
    for config in configs:
        jobs.append(Job(f"with all, seed {config.seed}", config=config))
        jobs.append(removal(f"without, seed {config.seed}", case.mask, config))
    done = case.retrain(jobs, "retrain with and without")
    figures = [case.measure(each.theta).metrics for each in done]
    pairs = list(zip(figures[::2], figures[1::2], strict=True))
    updated = case.measure(case.theta).metrics
    trained = case.measure(case.run.theta).metrics
    record = {}
    for name in trained:
        changes = [without[name] - whole[name] for whole, without in pairs]
        record[name] = {
            "with": [whole[name] for whole, _ in pairs],
            "without": [without[name] for _, without in pairs],
            "change": changes,
            "mean": mean(changes),
            "deviation": stdev(changes) if len(changes) > 1 else None,
            "update": updated[name] - trained[name],
        }
    ways = [
        without.theta - whole.theta for whole, without in zip(done[::2], done[1::2], strict=True)
    ]
    return {"seeds": list(case.checks.seeds), "metrics": record, "shifts": _shifts(case, ways)}


def _shifts(case: Case, ways: list[Tensor]) -> dict[str, Any]:
    """How far each seed's removal shifts the adapter, and its cosine with the run's own two."""
    (own,) = case.retrain([removal("without the removed samples", case.mask)], "retrain")
    truth, ours = own.theta - case.run.theta, case.theta - case.run.theta
    return {
        "norm": [float(way.norm()) for way in ways],
        "cosine_retrained": [_cosine(way, truth) for way in ways],
        "cosine_update": [_cosine(way, ours) for way in ways],
        "update_retrained": _cosine(ours, truth),
    }


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.to(a.device).double()
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-30))
