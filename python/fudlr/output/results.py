"""A result as files: written whole, read back, and made into a report.

DIR/adapter/       the updated adapter, peft's files, and a model card
DIR/mask.parquet   one row a training sample
DIR/summary.json   every figure
DIR/curve.json     the trade-off curve
DIR/config.yaml    every option
DIR/report.html    the page for a person
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fudlr import lora
from fudlr.common.files import atomic_folder, check_replaceable
from fudlr.config import dump_config
from fudlr.data.described import described
from fudlr.data.rows import named
from fudlr.debias import Result
from fudlr.gradients.metric import VALIDATION_LOSS
from fudlr.pipeline.request import Answer
from fudlr.report import ReportData, model_card, save_report_data, write_report
from fudlr.run.binding import result_parts


def check_result_folder(folder: Path) -> None:
    """Refuse before long work a folder that cannot be written, or holds something else."""
    check_replaceable(folder, "result")


def write_result(folder: str | Path, result: Result, extra: dict[str, Any] | None = None) -> Path:
    """Write everything of `result`; the run's model must hold the updated adapter.

    Args:
        folder: DIR; an earlier result there is replaced, whole.
        result: From `debias`.
        extra: Further entries of the summary.
    """
    folder, run = Path(folder), result.run
    run.engine.load(result.theta)
    summary = {**result.summary, **(extra or {})}
    if run.folder is not None:
        summary["run"] = str(run.folder.resolve())
    if run.adapter is not None:
        summary["adapter"] = str(run.adapter.resolve())
    config, mask = run.config.model_copy(update={"debias": result.config}), mask_table(result)
    summary["binding"] = {**run.identity(), **result_parts(mask, result.theta, config)}
    data = ReportData(summary, mask, tuple(result.curve))
    with atomic_folder(folder, "result") as temporary:
        lora.save(run.recommender.model, temporary / "adapter")
        save_report_data(temporary, data)
        dump_config(temporary / "config.yaml", config)
        write_report(temporary, data)
        card = model_card(data, run.config.model.base)
        (temporary / "adapter" / "README.md").write_text(card, encoding="utf-8")
    return folder


def mask_table(result: Result) -> pl.DataFrame:
    """One row a training sample: id, mask, score, influences, and what makes it readable."""
    samples, found = result.run.split.train, result.answer
    known, popularity = described(samples), pl.Series(result.run.split.popularity)
    return pl.DataFrame(
        {
            "sample_id": known["sample_id"],
            "mask": result.mask.numpy().astype(np.int8),
            "score": found.scored.score.numpy(),
            **_influences(found),
            **{name: known[name] for name in ("user_id", "target", "target_title")},
            "target_popularity": named(popularity, samples.target),
            "history": known["history"],
        }
    )


def _influences(found: Answer) -> dict[str, Any]:
    return {
        "influence_" + ("accuracy" if name == VALIDATION_LOSS else name): column.numpy()
        for name, column in zip(
            found.scored.influence.names, found.scored.influence.values.T, strict=True
        )
    }
