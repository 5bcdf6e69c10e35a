"""Folders that Hugging Face `datasets` wrote with `save_to_disk`: Arrow streams in folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.build import Tables
from fudlr.data.columns import KEYS, roles
from fudlr.data.instructions import FIELDS, read_instruction_rows
from fudlr.data.interactions import Interactions
from fudlr.data.tables import EVENT_FILES, SIDE_FILES
from fudlr.data.text import PARTS, Table, listed, one_line

MARKERS = ("dataset_dict.json", "state.json")


def _load(path: Path) -> dict[str, pl.DataFrame]:
    """The splits by name: a folder of Arrow streams each; one alone has the events' name."""
    whole = (path / "dataset_dict.json").is_file()
    parts = [f.parent for f in sorted(path.glob("*/state.json"))] if whole else [path]
    try:
        tables = [pl.concat(map(pl.read_ipc_stream, sorted(p.glob("*.arrow")))) for p in parts]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        asked = f"the data set in {path} was to be read"
        raise DataError(asked, one_line(error), "Save it again with save_to_disk") from error
    names = [part.name for part in parts] if whole else [EVENT_FILES[0]]
    return dict(zip(names, tables, strict=True))


def saved_tables(path: Path, columns: Mapping[str, str]) -> Tables | Interactions:
    """A `Dataset`, or a `DatasetDict` whose splits are one table and its side tables.

    The interactions are the split `interactions`, `ratings` or `events`, or all of train, valid and
    test together; these may also hold instructions.
    """
    tables = _load(path)
    main = next((stem for stem in EVENT_FILES if stem in tables), None)
    parts = [main] if main else [part for part in (*PARTS, "validation") if part in tables]
    if not parts:
        raise DataError(
            f"interactions were to be read from {path}",
            f"its splits are {listed(tables)}",
            f"Call one {EVENT_FILES[0]}, or give the split's own folder",
        )
    names = tables[parts[0]].columns
    if roles(names, columns) < set(KEYS) and set(FIELDS) <= set(names):
        rows = (
            (f"{part} row {number}", row)
            for part in parts
            for number, row in enumerate(tables[part].iter_rows(named=True), start=1)
        )
        return read_instruction_rows(rows, path.name)
    try:
        events = pl.concat([tables[part] for part in parts], how="vertical_relaxed")
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise DataError(
            f"the splits {listed(parts)} of {path} were to be read together",
            one_line(error),
            "Give one split's own folder, or give them the same columns",
        ) from error
    sides = []
    for stems in SIDE_FILES.values():
        side = next((stem for stem in stems if stem in tables and stem not in parts), None)
        sides.append(Table(tables[side], f"{path}[{side}]", 1) if side else None)
    return Tables(path.name, Table(events, f"{path}[{'+'.join(parts)}]", 1), *sides)
