"""CSV, TSV, Parquet, JSON and JSONL: a table of interactions, side tables beside it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.build import Ties, build_interactions
from fudlr.data.columns import KEYS, Place, as_events, as_side, find_column
from fudlr.data.interactions import Interactions
from fudlr.data.text import check_fields, decode, one_line, read_bytes, read_fields, shown

SEPARATORS = ",\t;|"
EVENT_FILES = ("interactions", "ratings", "events")
USER_FILES = ("users", "user")
ITEM_FILES = ("items", "item", "movies", "books")
CHUNK = 100_000  # JSON rows held as Python objects at a time

Row = dict[str, Any]


def _header(text: bytes, label: str) -> tuple[list[str], str]:
    """Names and separator of the first line: the separator that gives the most names."""
    line = text.split(b"\n", 1)[0].decode()
    separator = max(SEPARATORS, key=line.count)
    try:
        names = [n.strip() for n in next(csv.reader([line], delimiter=separator, strict=True))]
    except (csv.Error, StopIteration) as error:
        raise DataError(f"{label} was to be read", f"its header: {error}", "Mend it") from error
    if len(set(names)) < len(names) or "" in names:
        strange = next(n for n in names if n == "" or names.count(n) > 1)
        raise DataError(
            f"{label} was to be read",
            f"its header has the name {shown(strange)} " + ("twice" if strange else "for a column"),
            "The first line names every column, each by a name of its own",
        )
    return names, separator


def read_csv(path: Path) -> pl.DataFrame:
    """Read a table with a header, all of it as text; the separator is found in the header.

    Raises:
        DataError: not UTF-8, no rows, a row with too few or too many fields.
    """
    label = str(path)
    text = decode(read_bytes(path), label, "utf-8")
    if b"\0" in text:
        raise DataError(f"{label} was to be read", "it holds zero bytes", "Write it as text")
    names, separator = _header(text, label)
    head, _, body = text.partition(b"\n")
    if not body:
        raise DataError(f"{label} was to be read", "it has a header and no rows", "Fetch it again")
    if b'"' in body:
        _check_quoted(body, label, len(names), separator)
        return read_fields(body, label, separator, tuple(names), quote='"')
    check_fields(head.replace(b'"', b"") + b"\n" + body, label, len(names), separator)
    return read_fields(body, label, separator, tuple(names))


def _check_quoted(body: bytes, label: str, n_columns: int, separator: str) -> None:
    lines = csv.reader(io.StringIO(body.decode(), newline=""), delimiter=separator, strict=True)
    found = ""
    try:
        for row in lines:
            if len(row) != n_columns:
                found = f"line {lines.line_num + 1} has {len(row)} fields, the header {n_columns}"
                break
    except csv.Error as error:
        found = f"line {lines.line_num + 1}: {error}"
    if found:
        raise DataError(
            f"{label} was to be read", found, "The file is truncated or damaged: mend the line"
        )


def read_parquet(path: Path) -> pl.DataFrame:
    """Read a Parquet file.

    Raises:
        DataError: it is not one, or it is damaged.
    """
    try:
        return pl.read_parquet(path, glob=False)
    except Exception as error:
        raise _damaged_parquet(path, error) from error
    except BaseException as error:
        if not isinstance(error, pl.exceptions.PanicException):
            raise
        raise _damaged_parquet(path, error) from None


def _damaged_parquet(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"{path} was to be read as Parquet", one_line(error), "Fetch it or write it again"
    )


def _no_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


def _objects(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of every row: of a list of objects, or of one object a line."""
    label = str(path)
    text = decode(read_bytes(path), label, "utf-8").decode()
    number = 0
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text, parse_constant=_no_constant)
            for number, row in enumerate(rows, start=1):
                yield number, row
            return
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        where = f"line {number}: " if number else ""
        raise DataError(
            f"{label} was to be read as JSON",
            where + one_line(error),
            "It should be a list of objects, or one object a line (JSONL)",
        ) from error


def json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a JSON or JSONL file with their number, from 1.

    Raises:
        DataError: not JSON, or a row that is no object.
    """
    empty = True
    for number, row in _objects(path):
        if not isinstance(row, dict):
            raise DataError(
                f"{path} was to be read",
                f"row {number} is {shown(row)}",
                "Every row should be an object with named fields",
            )
        empty = False
        yield number, row
    if empty:
        raise DataError(f"{path} was to be read", "it has no rows", "Write it again")


def _cell(value: Any, path: Path, number: int) -> str | list[str] | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list) and not any(isinstance(v, dict | list) for v in value):
        return [str(_cell(v, path, number) or "") for v in value]
    raise DataError(
        f"{path} was to be read",
        f"row {number} has {shown(value)} where text, a number or a list of them is expected",
        "Give flat rows, or name other columns",
    )


def read_json(path: Path, only: tuple[str, ...] | None = None) -> pl.DataFrame:
    """Read JSON or JSONL rows into columns of text, or of lists of text.

    Args:
        path: the file.
        only: read these columns alone; the others may hold anything.
    """
    chunks: list[pl.DataFrame] = []
    rows: list[dict[str, str | list[str] | None]] = []
    lists: set[str] = set()
    names: dict[str, None] = dict.fromkeys(only or ())
    for number, row in json_rows(path):
        cells = {n: _cell(v, path, number) for n, v in row.items() if not only or n in only}
        names |= dict.fromkeys(cells)
        lists |= {n for n, v in cells.items() if isinstance(v, list)}
        rows.append(cells)
        if len(rows) == CHUNK:
            chunks.append(_frame(rows, list(names), lists))
            rows = []
    chunks.append(_frame(rows, list(names), lists))
    try:
        return pl.concat([c for c in chunks if c.height], how="diagonal")
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise DataError(
            f"{path} was to be read", one_line(error), "Give every row the same kinds of fields"
        ) from error


def _frame(rows: list[dict[str, Any]], names: list[str], lists: set[str]) -> pl.DataFrame:
    columns = []
    for name in names:
        values = [row.get(name) for row in rows]
        if name in lists:
            split = [[v] if isinstance(v, str) else v or [] for v in values]
            columns.append(pl.Series(name, split, dtype=pl.List(pl.String)))
        else:
            columns.append(pl.Series(name, values, dtype=pl.String))
    return pl.DataFrame(columns)


READ = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_csv,
    ".parquet": read_parquet,
    ".json": read_json,
    ".jsonl": read_json,
}


def _beside(folder: Path, stems: tuple[str, ...]) -> Path | None:
    """The side table of one of these names; several would leave open which one is meant."""
    found = [f for s in stems for f in sorted(folder.glob(f"{s}.*")) if f.suffix in READ]
    if len(found) > 1:
        raise DataError(
            f"the side table beside the interactions in {folder} was to be read",
            f"there are several: {', '.join(f.name for f in found)}",
            "Keep the one you mean",
        )
    return found[0] if found else None


def find_table(path: Path, name: str | None) -> Path | None:
    """The file of interactions: `path` itself, or in the folder `path` the one that it must be."""
    if not path.is_dir():
        return path if path.suffix in READ else None
    files = sorted(f for f in path.iterdir() if f.suffix in READ and f.is_file())
    for stem in (name,) if name else EVENT_FILES:
        found = [f for f in files if f.stem == stem]
        if len(found) > 1:
            raise DataError(
                f"the interactions in {path} were to be read",
                f"there are several: {', '.join(f.name for f in found)}",
                "Name the file you mean",
            )
        if found:
            return found[0]
    rest = [f for f in files if f.stem not in USER_FILES + ITEM_FILES]
    return rest[0] if len(rest) == 1 and not name else None


def read_table(
    path: Path,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    ties: Ties = "item",
) -> Interactions:
    """Read a table of interactions with `users.*` and `items.*` beside it where they exist.

    Args:
        path: the file, or the folder that holds it as `interactions.*` or `ratings.*`.
        name: the file's name without ending, in a folder that holds several.
        columns: which column is `user`, `item`, `time`; `title` and `genres` of the items.
        ties: order at the same time; see `build_interactions`.

    Raises:
        DataError: what is missing, truncated or does not match.
        UsageError: a column that was named and does not exist.
    """
    columns = columns or {}
    file = find_table(path, name)
    if file is None:
        raise DataError(
            f"a table of interactions was to be read from {path}",
            "it is not clear which file that is",
            f"Name the file, or call it {EVENT_FILES[0]} with one of {', '.join(READ)}",
        )
    events = as_events(_event_columns(file, columns), columns, _place(file))
    users, items = _beside(file.parent, USER_FILES), _beside(file.parent, ITEM_FILES)
    return build_interactions(
        events,
        as_side(READ[users.suffix](users), "user", columns, _place(users)) if users else None,
        as_side(READ[items.suffix](items), "item", columns, _place(items)) if items else None,
        file.stem,
        ties,
    )


def _event_columns(file: Path, columns: Mapping[str, str]) -> pl.DataFrame:
    """The table of interactions; of JSON the three columns alone, as the rest may be nested."""
    if READ[file.suffix] is not read_json:
        return READ[file.suffix](file)
    _, row = next(json_rows(file))
    return read_json(file, tuple(find_column(list(row), r, columns, str(file)) for r in KEYS))


def _place(file: Path) -> Place:
    return Place(str(file), first=2 if READ[file.suffix] is read_csv else 1)
