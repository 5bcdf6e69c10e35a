"""Predicted against real retraining: random and targeted removals, and one sample at a time."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fudlr.gradients.metric import VALIDATION_LOSS
from fudlr.verify.case import Case
from fudlr.verify.changes import Changes, measure_changes
from fudlr.verify.lds import random_removals, targeted_removals


def removals(case: Case) -> dict[str, Any] | None:
    """The linear datamodeling score over random removals, and the same over targeted ones."""
    n, checks = len(case.mask), case.checks
    if not checks.lds and not checks.targeted:
        return None
    record: dict[str, Any] = {"share": checks.share}
    if checks.lds:
        drawn = random_removals(n, checks.lds, checks.share, case.run.config.seed)
        record["random"] = _plain(_changes(case, drawn, "random samples"), case)
    if checks.targeted:
        influence = steering(case)
        chosen = targeted_removals(influence, checks.targeted, checks.share, case.run.config.seed)
        record["targeted"] = _plain(_changes(case, chosen, "targeted samples"), case)
    return record


def leave_one_out(case: Case) -> dict[str, Any] | None:
    """Samples left out one at a time: half of the strongest influence, half at random.

    One sample among thousands moves a metric less than rounding does once training has multiplied
    it: this is for small cases.
    """
    n, count = len(case.mask), min(case.checks.loo, len(case.mask))
    if not count:
        return None
    strongest = steering(case).abs().argsort(descending=True, stable=True)[: count // 2]
    generator = torch.Generator().manual_seed(case.run.config.seed)
    others = torch.randperm(n, generator=generator)
    others = others[~torch.isin(others, strongest)][: count - len(strongest)]
    masks = list(torch.nn.functional.one_hot(torch.cat([strongest, others]), n).float())
    return _plain(_changes(case, masks, "one sample"), case)


def steering(case: Case) -> Tensor:
    """The influence [n] on the first metric that steered."""
    return next(column for name, column in case.influence.items() if name != VALIDATION_LOSS)


def _changes(case: Case, masks: list[Tensor], name: str) -> Changes:
    return measure_changes(
        case.run,
        case.influence,
        masks,
        name,
        folder=case.folder,
        processes=case.checks.processes,
    )


def _plain(changes: Changes, case: Case) -> dict[str, Any]:
    return {**asdict(changes), "agreement": changes.agreements(case.config.seed)}
