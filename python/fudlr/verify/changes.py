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

from fudlr.evaluation import Prompts, make_prompts
from fudlr.gradients.metric import VALIDATION_LOSS
from fudlr.metrics import find_metric
from fudlr.run import Run
from fudlr.verify.lds import agreement
from fudlr.verify.retraining import Job, removal, retrain

ALL = Job("with all samples")


@dataclass(frozen=True)
class Changes:
    """Over r removals, by metric: what influence predicted and what retraining gave, [r] each."""

    predicted: dict[str, list[float]]
    actual: dict[str, list[float]]
    removed: list[int]

    def agreements(self, seed: int = 0) -> dict[str, dict[str, Any]]:
        """Spearman, slope and their intervals of each metric, as plain data."""
        return {
            name: asdict(agreement([self.predicted[name]], [self.actual[name]], seed=seed))
            for name in self.predicted
        }


@torch.no_grad()
def surrogates(run: Run, prompts: Prompts, names: Sequence[str], theta: Tensor) -> dict[str, float]:
    """The surrogates' values, and the mean loss as `val_loss`, of the adapter `theta` [d]."""
    run.engine.load(theta)
    scores, losses = run.recommender.evaluate(prompts.samples, run.config.debias.batch)
    values = {
        name: float(find_metric(name).surrogate(scores, prompts.side))
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
    valid = make_prompts(run.split, run.split.valid, run.config.data)
    jobs = [ALL, *(removal(f"{name} {i + 1}", mask) for i, mask in enumerate(masks))]
    done = retrain(run, jobs, folder, processes, f"retrain without {name}")
    values = [surrogates(run, valid, list(influence), each.theta) for each in done]
    run.engine.load(run.theta)
    return Changes(
        predicted={
            metric: [float(mask.double() @ column.double()) for mask in masks]
            for metric, column in influence.items()
        },
        actual={
            metric: [after[metric] - values[0][metric] for after in values[1:]]
            for metric in influence
        },
        removed=[int(mask.sum()) for mask in masks],
    )
