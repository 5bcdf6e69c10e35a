"""Folders that Hugging Face `datasets` wrote with `save_to_disk`; read where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from fudlr.common.errors import DataError, UsageError
from fudlr.data.build import Table, Tables
from fudlr.data.columns import KEYS, roles
from fudlr.data.instructions import FIELDS, PARTS
from fudlr.data.tables import EVENT_FILES, ITEM_FILES, USER_FILES, Row
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


def saved_tables(
    path: Path, name: str | None, columns: Mapping[str, str]
) -> Tables | Iterator[tuple[str, Row]]:
    """A `Dataset`, or a `DatasetDict` whose splits are one table and its side tables.

    Args:
        path: the folder.
        name: the split that holds the interactions; without it `interactions`, `ratings`,
            `events`, or all of train, valid and test together.
        columns: the caller's mapping.

    Returns:
        Tables; or, of splits that hold instructions, their rows, each with what to call it.

    Raises:
        DataError: `datasets` is not installed, or the folder is damaged or of another kind.
        UsageError: no such split.
    """
    tables = _load(path)
    if name is not None and name not in tables:
        raise UsageError(
            f"the split {name} of {path} was asked for",
            f"there is {listed(tables)}",
            "Name one of these",
        )
    main = name or next((stem for stem in EVENT_FILES if stem in tables), None)
    parts = [main] if main else [part for part in (*PARTS, "validation") if part in tables]
    if not parts:
        raise DataError(
            f"interactions were to be read from {path}",
            f"its splits are {listed(tables)}",
            f"Call one {EVENT_FILES[0]}, or name it with data.name",
        )
    names = tables[parts[0]].columns
    if roles(names, columns) < set(KEYS) and set(FIELDS) <= set(names):
        return (
            (f"{part} row {number}", row)
            for part in parts
            for number, row in enumerate(tables[part].iter_rows(named=True), start=1)
        )
    try:
        events = pl.concat([tables[part] for part in parts], how="vertical_relaxed")
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise DataError(
            f"the splits {listed(parts)} of {path} were to be read together",
            one_line(error),
            "Name one with data.name, or give them the same columns",
        ) from error
    sides = []
    for stems in (USER_FILES, ITEM_FILES):
        side = next((stem for stem in stems if stem in tables and stem not in parts), None)
        sides.append(Table(tables[side], f"{path}[{side}]", 1) if side else None)
    return Tables(path.name, Table(events, f"{path}[{'+'.join(parts)}]", 1), *sides)
