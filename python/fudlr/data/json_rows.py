"""JSON and JSONL: rows as dictionaries, and as columns of text or of lists of text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.text import Table, listed, one_line, read_text, shown, unread, warn

CHUNK = 100_000  # rows held as Python objects at a time
NESTED = object()

Row = dict[str, Any]


def _no_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


def json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows with their number, from 1: of a list of objects, or of one object a line."""
    text = read_text(path, "utf-8").decode()
    whole = text.lstrip().startswith("[")
    number = 0
    try:
        rows = json.loads(text, parse_constant=_no_constant) if whole else text.split("\n")
        for number, value in enumerate(rows, start=1):
            if not whole and not value.strip():
                continue
            row = value if whole else json.loads(value, parse_constant=_no_constant)
            if not isinstance(row, dict):
                remedy = "Every row should be an object with named fields"
                raise unread(path, f"row {number} is {shown(row)}", remedy)
            yield number, row
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} was to be read as JSON",
            (f"line {number}: " if number else "") + one_line(error),
            "It should be a list of objects, or one object a line (JSONL)",
        ) from error
    if not number:
        raise unread(path, "it has no rows", "Write it again")


def _cell(value: Any) -> Any:
    """Text, a list of texts, None, or `NESTED` where it is neither."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        names = [v.get("name") for v in value]  # records, as TMDB has them
        return names if all(isinstance(name, str) for name in names) else NESTED
    if isinstance(value, list) and not any(isinstance(v, dict | list) for v in value):
        return [str(_cell(v) or "") for v in value]
    return NESTED


def read_json(path: Path, only: tuple[str, ...] = ()) -> Table:
    """Read JSON or JSONL rows into columns of text, or of lists of text.

    Columns of nested values, such as `images` of Amazon's items, are left out with a warning.

    Args:
        path: the file.
        only: read these columns alone.
    """
    frames: list[pl.DataFrame] = []
    rows: list[Row] = []
    nested: dict[str, int] = {}
    for number, row in json_rows(path):
        cells = {name: _cell(row[name]) for name in row if not only or name in only}
        for name in [name for name, value in cells.items() if value is NESTED]:
            nested.setdefault(name, number)
            cells[name] = None
        rows.append(cells)
        if len(rows) == CHUNK:
            frames.append(_frame(path, rows))
            rows = []
    if nested and only:
        name, number = next(iter(nested.items()))
        found = f"row {number} has nested values in `{name}`"
        raise unread(path, found, "Ids and times are texts or numbers: name another column")
    if nested:
        text = f"{path.name}: columns of nested values are left out: {listed(nested)}"
        warn(text, "nested", len(nested))
    try:
        frame = pl.concat(
            [*frames, *([_frame(path, rows)] if rows else [])], how="diagonal_relaxed"
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise unread(path, one_line(error), "Give every row the same kinds of fields") from error
    return Table(frame.drop(list(nested), strict=False), str(path), 1)


def _frame(path: Path, rows: list[Row]) -> pl.DataFrame:
    columns = []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        kind: pl.DataType | type[pl.String] = pl.String
        if any(isinstance(value, list) for value in values):
            values = [[v] if isinstance(v, str) else v or [] for v in values]
            kind = pl.List(pl.String)
        try:
            columns.append(pl.Series(name, values, dtype=kind))
        except UnicodeEncodeError as error:
            half = shown(error.object[error.start : error.end])
            found = f"a value of `{shown(name)}` is no text: it holds half of a character ({half})"
            raise unread(path, found, "Write it again as UTF-8") from error
    return pl.DataFrame(columns)
