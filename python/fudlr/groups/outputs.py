"""Grouped requests as files and on the terminal.

DIR/grouped.json        figures of every set, before and after, by its own mask and by everyone's
DIR/masks.parquet       one row a training sample: `mask[NAME]` and `score[NAME]` of every set
DIR/adapters/NUMBER/    the adapter of each set, peft's files, by its number in grouped.json
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from fudlr import lora
from fudlr.common import terminal
from fudlr.common.files import atomic_folder, write_json, write_table
from fudlr.config import to_plain
from fudlr.groups.request import Grouped


def grouped_record(grouped: Grouped) -> dict[str, Any]:
    """Everything but tensors, as plain data."""
    terms = grouped.objective.terms
    return {
        "objective": str(grouped.objective),
        "metrics": [term.metric.soft_key for term in terms],
        "budget": grouped.config.budget,
        "samples": len(grouped.run.split.train),
        "sets": [
            {
                "name": one.name,
                "adapter": f"adapters/{number}",
                "users": {"validation": one.users[0], "test": one.users[1]},
                "removed": int(one.mask.sum()),
                "overlap": grouped.overlap(one),
                "predicted": one.predicted,
                "before": one.before,
                "after": one.after,
                "everyones": one.shared,
                "change": {name: [v.low, v.high] for name, v in one.change.items()},
            }
            for number, one in enumerate(grouped.found)
        ],
        "warnings": grouped.warnings,
        "rows": grouped.rows,
        "diagnostics": grouped.diagnostics,
        "seconds": grouped.seconds,
        "config": to_plain(grouped.run.config.model_copy(update={"debias": grouped.config})),
    }


def write_grouped(folder: Path, grouped: Grouped) -> dict[str, Any]:
    """Write everything to `folder`, whole; the run's model holds the trained adapter afterwards."""
    record, run = grouped_record(grouped), grouped.run
    table = {"sample_id": run.split.train.ids}
    for one in grouped.found:
        table[f"mask[{one.name}]"] = one.mask.numpy().astype(np.int8)
        table[f"score[{one.name}]"] = one.scored.score.numpy()
    with atomic_folder(folder, "groups") as temporary:
        write_json(temporary / "grouped.json", record)
        write_table(temporary / "masks.parquet", pl.DataFrame(table))
        for number, one in enumerate(grouped.found):
            run.engine.load(one.theta)
            lora.save(run.recommender.model, temporary / "adapters" / str(number))
    run.engine.load(run.theta)
    return record


def print_grouped(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a row a set: change of the objective's metrics by its own mask and by everyone's."""
    heads = ["set", "users", "removed", "overlap"]
    heads += [h for name in record["metrics"] for h in (name, "own mask", "95%", "everyone's")]
    rows = []
    for one in record["sets"]:
        row = [one["name"], str(one["users"]["test"]), str(one["removed"]), f"{one['overlap']:.2f}"]
        for name in record["metrics"]:
            first = one["before"][name]
            low, high = one["change"][name]
            row += [
                f"{first:.4g}",
                _percent(one["after"][name] - first, first),
                f"{_percent(low, first)} to {_percent(high, first)}",
                _percent(one["everyones"][name] - first, first),
            ]
        rows.append(row)
    (console or terminal.console()).print(terminal.table(heads, rows))


def _percent(change: float, first: float) -> str:
    return f"{100 * change / first:+.1f}%" if first else "–"
