"""What every experiment shares: options, cells kept on disk, hypotheses, a table, a result file.

A cell is a part that is finished on its own and kept as a file: an experiment that was interrupted
goes on with the cells that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from fudlr import load_run, train_run
from fudlr.common.files import atomic_file, write_json
from fudlr.config import RunConfig, merge, to_plain
from fudlr.data import Interactions, fetch_ml100k
from fudlr.run import Run
from torch import Tensor

Record = dict[str, Any]
Cells = Mapping[str, Record]


@dataclass(frozen=True)
class Options:
    """What an experiment is given: configuration, folder, seeds; `small` is a smoke test."""

    config: RunConfig
    out: Path
    seeds: tuple[int, ...] = (0,)
    small: bool = False
    processes: int = 1


@dataclass(frozen=True)
class Outcome:
    """A hypothesis, whether it held, and the figures behind it."""

    hypothesis: str
    held: bool
    found: str


@dataclass(frozen=True)
class Experiment:
    """A question; its cells of work by name; what they say of each hypothesis; a table row a cell.

    `defaults` are options of the run by dotted name.
    """

    about: str
    cells: Callable[[Options], Mapping[str, Callable[[], Record]]]
    outcomes: Callable[[Cells], Sequence[Outcome]]
    rows: Callable[[Cells], Sequence[Mapping[str, str]]]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def run_experiment(name: str, experiment: Experiment, options: Options) -> Record:
    """Do the cells that `options.out` does not hold yet; the record of all, as plain data."""
    cells = {
        cell: _kept(options, f"{name}-{cell}", work)
        for cell, work in experiment.cells(options).items()
    }
    return {
        "experiment": name,
        "about": experiment.about,
        "small": options.small,
        "outcomes": [asdict(outcome) for outcome in experiment.outcomes(cells)],
        "table": [dict(row) for row in experiment.rows(cells)],
        "cells": cells,
        "config": to_plain(options.config),
    }


def print_experiment(record: Record) -> None:
    """Print the table, and each hypothesis with what became of it."""
    print(record["about"])
    with pl.Config(tbl_cols=-1, tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_width_chars=200):
        print(pl.DataFrame(record["table"]))
    for outcome in record["outcomes"]:
        word = "held" if outcome["held"] else "did not hold"
        print(f"{word}: {outcome['hypothesis']} ({outcome['found']})")


def trained(options: Options, settings: dict[str, Any], name: str) -> Run:
    """The run of these settings: loaded where it was trained before, else trained and kept."""
    config = merge(options.config, settings)
    if config.data.source == "ml-100k":
        fetch_ml100k()
    folder = options.out / "runs" / f"{name}-{_digest(config.model_dump_json())}"
    if not (folder / "train.json").is_file():
        train_run(config, folder)
    return load_run(folder)


def _kept(options: Options, name: str, work: Callable[[], Record]) -> Record:
    hangs_on = json.dumps([to_plain(options.config), options.small, name])
    path = options.out / "cells" / f"{name}-{_digest(hangs_on)}.json"
    if not path.is_file():
        write_json(path, work())
    found: Record = json.loads(path.read_text(encoding="utf-8"))
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def correlations(a: Tensor, b: Tensor) -> dict[str, float]:
    """Pearson's and Spearman's correlation of `a` and `b`, both [n]."""
    table = pl.DataFrame({"a": a.double().numpy(), "b": b.double().numpy()})
    found = table.select(pearson=pl.corr("a", "b"), spearman=pl.corr("a", "b", method="spearman"))
    return {name: float(found[name].item()) for name in found.columns}


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between `a` and `b`, both [d]."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def write_recbole(folder: Path, name: str, data: Interactions) -> None:
    """Write made-up interactions as NAME.inter, NAME.user and NAME.item, for `data.source`."""
    events = pl.DataFrame(
        {
            "user_id:token": data.users["user_id"].gather(data.user),
            "item_id:token": data.items["item_id"].gather(data.item),
            "timestamp:float": data.time,
        }
    )
    users = data.users.rename({column: f"{column}:token" for column in data.users.columns})
    items = data.items.select(
        pl.col("item_id").alias("item_id:token"),
        pl.col("title").alias("movie_title:token_seq"),
        pl.col("genres").list.join("|").str.replace_all(" ", "-").alias("genre:token_seq"),
    )
    for kind, table in (("inter", events), ("user", users), ("item", items)):
        with atomic_file(folder / f"{name}.{kind}") as temporary:
            table.write_csv(temporary, separator="\t")
