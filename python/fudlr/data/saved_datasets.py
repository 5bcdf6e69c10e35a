"""Folders that Hugging Face `datasets` wrote with `save_to_disk`; read where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from fudlr.common.errors import DataError, UsageError
from fudlr.data.build import Ties, build_interactions
from fudlr.data.columns import Place, as_events, as_side, has_roles
from fudlr.data.instructions import FIELDS, PARTS, read_instruction_rows
from fudlr.data.interactions import Interactions
from fudlr.data.tables import EVENT_FILES, ITEM_FILES, USER_FILES
from fudlr.data.text import listed, one_line

MARKERS = ("dataset_dict.json", "state.json")


def is_saved_dataset(path: Path) -> bool:
    """Whether `path` is such a folder."""
    return path.is_dir() and any((path / marker).is_file() for marker in MARKERS)


def _load(path: Path) -> dict[str, pl.DataFrame]:
    asked = f"the data set in {path} was to be read"
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            asked,
            "it was saved by Hugging Face's `datasets`, which is not installed",
            "Run `pip install datasets`, or save the data as Parquet",
        ) from error
    try:
        loaded: Any = library.load_from_disk(str(path))
        parts = loaded if isinstance(loaded, dict) else {EVENT_FILES[0]: loaded}
        tables = {name: pl.DataFrame(part.with_format("arrow")[:]) for name, part in parts.items()}
    except Exception as error:  # the library documents none of its own
        raise DataError(asked, one_line(error), "Save it again with save_to_disk") from error
    return tables


def _pick(tables: dict[str, pl.DataFrame], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in tables), None)


def read_saved_dataset(
    path: Path,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    ties: Ties = "item",
) -> Interactions:
    """Read a `Dataset`, or a `DatasetDict` whose splits are one table and its side tables.

    Args:
        path: the folder.
        name: the split that holds the interactions; without it `interactions`, `ratings`,
            `events`, or all of train, valid and test together.
        columns: as in `read_table`.
        ties: order at the same time; see `build_interactions`.

    Raises:
        DataError: `datasets` is not installed, or the folder is damaged or of another kind.
        UsageError: no such split.
    """
    columns = columns or {}
    tables = _load(path)
    if name is not None and name not in tables:
        raise UsageError(
            f"the split {name} of {path} was asked for",
            f"there is {listed(tables)}",
            "Name one of these",
        )
    main = name or _pick(tables, EVENT_FILES)
    parts = [main] if main else [part for part in (*PARTS, "validation") if part in tables]
    if not parts:
        raise DataError(
            f"interactions were to be read from {path}",
            f"its splits are {listed(tables)}",
            f"Call one {EVENT_FILES[0]}, or name it with data.name",
        )
    names = tables[parts[0]].columns
    if not has_roles(names, columns) and set(FIELDS) <= set(names):
        rows = (
            (f"{part} row {number}", row)
            for part in parts
            for number, row in enumerate(tables[part].iter_rows(named=True), start=1)
        )
        return read_instruction_rows(rows, path.name)
    events = [as_events(tables[part], columns, Place(f"{path}[{part}]", 1)) for part in parts]
    sides = {}
    for role, stems in (("user", USER_FILES), ("item", ITEM_FILES)):
        side = _pick(tables, stems)
        if side is not None and side not in parts:
            sides[role] = as_side(tables[side], role, columns, Place(f"{path}[{side}]", 1))
    both = sides.get("user"), sides.get("item")
    return build_interactions(pl.concat(events), *both, path.name, ties)
