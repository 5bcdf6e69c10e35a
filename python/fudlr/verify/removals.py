"""Changes of metrics that retraining made, beside what influence predicted for them.

Predicted and actual are of the same thing: the metric's surrogate on the validation prompts, whose
gradient the influence came from, retrained minus trained in the same way with all samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr.evaluation import Prompts
from fudlr.gradients.metric import VALIDATION_LOSS
from fudlr.metrics import find_metric, surrogate
from fudlr.run import Run
from fudlr.verify.case import Case
from fudlr.verify.lds import agreement, random_removals, targeted_removals
from fudlr.verify.retraining import Job, removal, retrain


@dataclass(frozen=True)
class Changes:
    """Over r removals, by metric: what influence predicted and what retraining gave, [r] each."""

    predicted: dict[str, list[float]]
    actual: dict[str, list[float]]
    removed: list[int]


@torch.no_grad()
def surrogates(run: Run, prompts: Prompts, names: Sequence[str], theta: Tensor) -> dict[str, float]:
    """The surrogates' values, and the mean loss as `val_loss`, of the adapter `theta` [d]."""
    run.engine.load(theta)
    scores, losses = run.recommender.evaluate(prompts.samples, run.config.debias.batch)
    values = {
        name: float(surrogate(find_metric(name), scores, prompts.side))
        for name in names
        if name != VALIDATION_LOSS
    }
    return values | {VALIDATION_LOSS: float(losses.mean())}


def measure_changes(
    run: Run,
    influence: Mapping[str, Tensor],
    masks: Sequence[Tensor],
    name: str,
    *,
    folder: Path | None = None,
    processes: int = 1,
) -> Changes:
    """Retrain with all samples and without each mask's, and compare.

    Args:
        run: What the influence is of.
        influence: By metric (`val_loss` for the accuracy) the influence of each sample, [n].
        masks: r masks [n], 1 removed.
        name: What the removals are called.
        folder: Where retrainings are kept.
        processes: Workers.
    """
    jobs = [removal(f"{name} {i + 1}", mask) for i, mask in enumerate(masks)]
    jobs = [Job("with all samples"), *jobs]
    done = retrain(run, jobs, folder, processes, f"retrain without {name}")
    first, *values = [surrogates(run, run.valid, list(influence), each.theta) for each in done]
    run.engine.load(run.theta)
    return Changes(
        predicted={
            metric: [float(mask.double() @ column.double()) for mask in masks]
            for metric, column in influence.items()
        },
        actual={
            metric: [after[metric] - first[metric] for after in values] for metric in influence
        },
        removed=[int(mask.sum()) for mask in masks],
    )


def removals(case: Case) -> dict[str, Any] | None:
    """The linear datamodeling score over random removals, and the same over targeted ones."""
    n, checks, seed = len(case.mask), case.checks, case.seed
    if not checks.lds and not checks.targeted:
        return None
    record: dict[str, Any] = {"share": checks.share}
    if checks.lds:
        masks = random_removals(n, checks.lds, checks.share, seed)
        record["random"] = _compared(case, masks, "random samples")
    if checks.targeted:
        # On the first metric that steered.
        steering = next(v for name, v in case.influence.items() if name != VALIDATION_LOSS)
        masks = targeted_removals(steering, checks.targeted, checks.share, seed)
        record["targeted"] = _compared(case, masks, "targeted samples")
    return record


def _compared(case: Case, masks: list[Tensor], name: str) -> dict[str, Any]:
    """The changes by the masks, with Spearman, slope and their intervals of each metric."""
    run, influence, processes = case.run, case.influence, case.checks.processes
    changes = measure_changes(run, influence, masks, name, folder=case.folder, processes=processes)
    agreements = {
        metric: asdict(agreement([values], [changes.actual[metric]], seed=case.seed))
        for metric, values in changes.predicted.items()
    }
    return {**asdict(changes), "agreement": agreements}
