"""Proof: the adapter retrained without the removed samples, held against the update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from fudlr import lora
from fudlr.common.errors import DataError, UsageError
from fudlr.common.files import clear_unfinished, write_text
from fudlr.common.progress import StageClock
from fudlr.common.terminal import say
from fudlr.config import load_config, trained_options
from fudlr.debias import cost, intervals
from fudlr.report import (
    ReportData,
    load_report_data,
    model_card,
    print_checks,
    print_summary,
    save_report_data,
    write_report,
)
from fudlr.run import Run, load_run
from fudlr.run.binding import check_result, result_parts, result_run
from fudlr.run.recipe import differences
from fudlr.verify.case import Case, Checks
from fudlr.verify.forgetting import forgetting
from fudlr.verify.heldout import heldout, null
from fudlr.verify.removals import removals
from fudlr.verify.retraining import removal
from fudlr.verify.seeds import seeds


def predictions(case: Case) -> dict[str, Any] | None:
    """How far the adapters' predictions are from each other, where the removal is audited."""
    if not case.audited:
        return None
    (done,) = case.retrain([removal("without the removed samples", case.mask)], "retrain")
    thetas = {"trained": case.run.theta, "retrained": done.theta, "updated": case.theta}
    return case.audit.distances(thetas)


CHECKS: dict[str, Callable[[Case], dict[str, Any] | None]] = {
    "predictions": predictions,
    "seeds": seeds,
    "heldout": heldout,
    "forgetting": forgetting,
    "lds": removals,
}
"""What to hold a result against besides one retraining, the cheapest first; None is not asked for.

What a check finds, plain data, is kept in `summary.json` under `verification`.
"""


@dataclass(frozen=True)
class Verification:
    """What real retraining without the masked samples gave.

    Attributes:
        theta: The retrained parameters [d].
        figures: Its metrics.
        intervals: Bootstrap intervals, in the summary's form; paired with before and after.
        agreement: (after − before) / (retrained − before) of every metric.
        null: For `after` and `retrained`, the permutation null of every group metric.
        seconds: By stage; `retraining` is the training's wall time.
        cpu_seconds: The same in CPU time.
    """

    theta: Tensor
    figures: dict[str, float]
    intervals: dict[str, dict[str, list[float]]]
    agreement: dict[str, float]
    null: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]


def verify(run: Run, mask: Tensor, theta: Tensor) -> Verification:
    """Retrain from the run's start, in its order and scale, with weights 1 − m.

    Args:
        run: What was debiased; its model holds the retrained adapter afterwards.
        mask: m [n], 1 removed.
        theta: The updated parameters [d], to compare with.
    """
    return verify_case(Case(run, run.config.debias, pl.DataFrame(), mask, theta))


def verify_case(case: Case) -> Verification:
    """The same for a `Case`, which keeps the retraining where it has a folder."""
    clock = StageClock()
    (done,) = case.retrain([removal("retrain without the removed samples", case.mask)], "retrain")
    with clock.stage("evaluate retrained"):
        vectors = {"before": case.run.theta, "after": case.theta, "retrained": done.theta}
        measured = {name: case.measure(vector) for name, vector in vectors.items()}
        kept = {name: each.statistics for name, each in measured.items()}
        drawn = intervals(kept, case.run.test.side, case.seed)
        nulls = {state: null(kept[state], case) for state in ("after", "retrained")}
    return Verification(
        theta=done.theta,
        figures=measured["retrained"].metrics,
        intervals=drawn,
        agreement=agreement(*(each.metrics for each in measured.values())),
        null=nulls,
        seconds={"retraining": done.seconds, **clock.seconds},
        cpu_seconds={"retraining": done.cpu_seconds, **clock.cpu_seconds},
    )


def agreement(
    before: dict[str, float], after: dict[str, float], retrained: dict[str, float]
) -> dict[str, float]:
    """(after − before) / (retrained − before) of every metric that retraining moved."""
    return {
        name: (after[name] - value) / (retrained[name] - value)
        for name, value in before.items()
        if retrained[name] != value
    }


def verify_result(
    folder: str | Path,
    run: Run | str | Path | None = None,
    checks: Checks | None = None,
    device: str = "auto",
) -> ReportData:
    """Verify the result in `folder`, add the figures to its summary, and remake its report.

    Every retraining is kept in `folder`/retrainings: what was interrupted goes on from there.

    Args:
        folder: What `fudlr debias` wrote.
        run: The run it was made from; by default the folder named in the summary.
        checks: What else to do; see `Checks`.
        device: Where the run is loaded to, as `model.device` has it.

    Raises:
        UsageError: The folder holds no result, or its run is not where it was.
        DataError: The run, the adapter, the mask or the options are not those of the summary, or
            the mask does not fit the run's training samples.
    """
    folder = Path(folder)
    data, options = load_report_data(folder), load_config(folder / "config.yaml")
    asked = f"the result in {folder} was to be verified"
    audited = "forget" in data.summary
    if audited and checks is not None and checks.heldout:
        raise UsageError(
            asked + " on held-out users",
            "its mask was named, and no users' gradient chose it",
            "Leave --heldout out",
        )
    if not isinstance(run, Run):
        named = result_run(folder, data.summary, None if run is None else Path(run))
        settings = {**trained_options(options), "model.device": device}
        run = load_run(named, data.summary.get("adapter"), settings)
    mask = torch.from_numpy(1 - data.weights(run.split.train.ids.tolist()).to_numpy()).float()
    weights = folder / "adapter" / lora.ADAPTER_FILES[1]
    if not weights.is_file():
        raise DataError(asked, f"{weights} is missing", "Restore it, or debias again")
    theta = run.engine.flatten(load_file(weights)).cpu()
    own = result_parts(data.mask, theta, options)
    check_result(asked, data.summary.get("binding"), {**run.identity(), **own})
    if run.recipe is not None:
        recipe, others = run.config.train, differences(run.recipe, run.config.train)
        say(
            f"The adapter was trained elsewhere. What is retrained follows this run's recipe: "
            f"{recipe.epochs} epochs of Adam at {recipe.learning_rate:g}, falling as a cosine, "
            f"batches of {recipe.batch}. It is another than the adapter's: {'; '.join(others)}"
        )
    kept = folder / "retrainings"
    case = Case(run, options.debias, data.mask, mask, theta, checks or Checks(), kept, audited)
    found = verify_case(case)
    checked = {name: check(case) for name, check in CHECKS.items()}
    seconds = {**data.summary["seconds"], **found.seconds}
    summary: dict[str, Any] = {
        **data.summary,
        "retrained": found.figures,
        "intervals": found.intervals,
        "agreement": found.agreement,
        "seconds": seconds,
        "cpu_seconds": {**data.summary["cpu_seconds"], **found.cpu_seconds},
        "cost": cost(seconds, found.seconds["retraining"], given=audited),
        "verification": {
            **data.summary.get("verification", {}),
            "null": found.null,
            **{name: outcome for name, outcome in checked.items() if outcome is not None},
        },
    }
    removed = int(mask.sum())
    curve = [
        {**point, "measured": found.figures if point["removed"] == removed else None}
        for point in data.curve
    ]
    data = replace(data, summary=summary, curve=tuple(curve))
    # Not before all is known: an earlier proof stays whole until then, and retrainings are kept.
    run.engine.load(found.theta)
    clear_unfinished(folder)
    lora.save(run.recommender.model, folder / "retrained")
    save_report_data(folder, data)
    write_report(folder, data)
    write_text(folder / "adapter" / "README.md", model_card(data, run.config.model.base))
    print_summary(summary)
    print_checks(summary)
    return data
