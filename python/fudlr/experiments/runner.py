"""Running an experiment: cells done or read, outcomes judged; JSON, plot and table written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fudlr.common import terminal
from fudlr.common.errors import DataError, UsageError
from fudlr.common.files import atomic_file, write_json
from fudlr.common.progress import track
from fudlr.config import to_plain
from fudlr.experiments.base import Experiment, Options, Record
from fudlr.report.svg import canvas
from fudlr.run import Run, load_run, train_run, versions


def run_experiment(experiment: Experiment, options: Options) -> dict[str, Any]:
    """Do the cells that `options.out` does not hold yet; the record of all, as plain data.

    Writes NAME.json and NAME.svg into `options.out`.

    Raises:
        UsageError: No seed, or one twice.
        DataError: A kept cell is damaged.
    """
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise UsageError(
            f"the experiment {experiment.name} was asked for at seeds {list(options.seeds)}",
            "there is none, or one stands there twice",
            "Give each seed once",
        )
    cells = {}
    work = experiment.cells(options)
    for name in track(work, description=experiment.name):
        cells[name] = _cell(options, f"{experiment.name}-{name}", work[name])
    record = {
        "experiment": experiment.name,
        "about": experiment.about,
        "small": options.small,
        "outcomes": [asdict(outcome) for outcome in experiment.outcomes(cells)],
        "table": [list(row) for row in experiment.rows(cells)],
        "cells": cells,
        "config": to_plain(options.config),
        "versions": versions(),
    }
    write_json(options.out / f"{experiment.name}.json", record)
    with atomic_file(options.out / f"{experiment.name}.svg") as temporary, canvas(3.4) as drawing:
        figure, axes = drawing
        experiment.plot(cells, axes)
        figure.savefig(temporary, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return record


def print_experiment(record: dict[str, Any], console: Console | None = None) -> None:
    """Print the table, and each hypothesis with what became of it."""
    console = console or terminal.console()
    head, *body = record["table"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left")
    for row in body:
        table.add_row(*row)
    console.print(Text(record["about"]))
    console.print(table)
    words = {True: "held", False: "did not hold", None: "undecided"}
    for outcome in record["outcomes"]:
        said = f"{words[outcome['held']]}: {outcome['hypothesis']} ({outcome['found']})"
        console.print(Text(said))
    if record["small"]:
        console.print(Text("small: a check that all parts work, not a result", style="yellow"))


def trained(options: Options, settings: dict[str, Any], name: str) -> Run:
    """The run of these settings: loaded where it was trained before, else trained and kept."""
    config = options.of(settings)
    folder = options.out / "runs" / f"{name}-{_digest(config.model_dump_json())}"
    if not (folder / "train.json").is_file():
        train_run(config, folder)
    return load_run(folder)


def _cell(options: Options, name: str, work: Callable[[], Record]) -> Record:
    """The cell's record: the kept one, or a new one, kept."""
    hangs_on = json.dumps([to_plain(options.config), options.small, name])
    path = options.out / "cells" / f"{name}-{_digest(hangs_on)}.json"
    if not path.is_file():
        write_json(path, work())
    return _read(path)


def _read(path: Path) -> Record:
    try:
        found: Record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"the cell kept in {path} was to be read",
            f"the file is damaged ({error})",
            "Delete it: it will be made again",
        ) from error
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
