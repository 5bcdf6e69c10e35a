"""Prompts that a person writes, as samples of the run's recommender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fudlr.common.errors import DataError
from fudlr.data import Interactions, Samples
from fudlr.data.json_rows import json_rows
from fudlr.data.named import places
from fudlr.data.rows import COLUMNS, Catalogue, RowSamples
from fudlr.data.trained_rows import text_samples
from fudlr.recommenders import Prompted
from fudlr.recommenders.live import Live
from fudlr.run import Run

FORMS = "item_id with history (ids, oldest first) or user_id; or prompt and answer"


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON, JSONL or Parquet file.

    Raises:
        DataError: It is missing, of another form, or has no rows.
    """
    asked = f"the prompts in {path} were to be read"
    remedy = f"Name a JSON, JSONL or Parquet file of rows with {FORMS}"
    if not path.is_file():
        raise DataError(asked, "there is no such file", remedy)
    if path.suffix == ".parquet":
        rows = pl.read_parquet(path, glob=False).to_dicts()
    elif ".json" in "".join(path.suffixes):
        rows = [row for _, row in json_rows(path)]
    else:
        raise DataError(asked, "its ending is of no known form", remedy)
    if not rows:
        raise DataError(asked, "there are none", remedy)
    return rows


def to_samples(run: Run, rows: Sequence[Mapping[str, Any]]) -> Samples:
    """The rows as samples that the run's recommender takes.

    Args:
        run: Its data say what ids mean.
        rows: `item_id`, what is recommended, after `history`, or after all that `user_id` chose
            before it; or for recommenders that write prompts `prompt` and `answer`. For a run of
            live objects, rows that its `collate` takes.

    Raises:
        DataError: There are none, a form is unknown, or an id, which is named.
    """
    asked = f"{len(rows)} prompts were to be asked about"
    if not rows:
        raise DataError(asked, "there are none", f"Give rows with {FORMS}")
    interactions, recommender = run.interactions, run.recommender
    if isinstance(recommender, Live):
        catalogue = Catalogue(interactions.users, interactions.items)
        table = catalogue.table(list(rows), "the prompts", COLUMNS)
        return RowSamples(interactions, np.arange(len(rows)), table)
    texts = [{"prompt", "answer"} <= row.keys() for row in rows]
    if all(texts) and isinstance(recommender, Prompted):
        unknown = {"chat": False, "user": -1, "target": -1, "history": []}
        return text_samples([{**unknown, **row} for row in rows], interactions)
    for number, row in enumerate(rows):
        if "item_id" not in row or not row.keys() & {"history", "user_id"}:
            raise DataError(
                asked, f"row {number} has {', '.join(map(str, row)) or 'nothing'}", f"Give {FORMS}"
            )
    return _with_histories(run, rows)


def _with_histories(run: Run, rows: Sequence[Mapping[str, Any]]) -> Samples:
    """A user of its own for every row, who chose its history and then its item."""
    interactions = run.interactions
    items = interactions.items["item_id"].to_list()
    users = interactions.users["user_id"].to_list()
    targets = places([row["item_id"] for row in rows], items, "item", "the data")
    histories = []
    for row, target in zip(rows, targets, strict=True):
        if (given := row.get("history")) is not None:
            chosen = places(given, items, "item", "the data")
        else:
            (user,) = places([row["user_id"]], users, "user", "the data")
            first, last = interactions.user_starts[user : user + 2]
            chosen = interactions.item[first:last]
            if (again := np.flatnonzero(chosen == target)).size:
                chosen = chosen[: again[0]]
        if not len(chosen) or target in chosen:
            raise DataError(
                f"the item {row['item_id']!r} was to be asked about",
                "its history is empty, or has it already",
                "Give what was chosen before it, at least one item",
            )
        histories.append(np.append(chosen, target))
    lengths = np.array([len(each) for each in histories])
    item = np.concatenate(histories).astype(np.int64)
    user = np.repeat(np.arange(len(rows)), lengths)
    names = [str(row.get("user_id", number)) for number, row in enumerate(rows)]
    table = pl.DataFrame({"user_id": names})
    made = Interactions(user, item, np.arange(len(item)), table, interactions.items)
    return Samples(made, lengths.cumsum() - 1)
