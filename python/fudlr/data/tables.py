"""CSV, TSV, Parquet, JSON and JSONL: a table of interactions, side tables beside it."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.build import Table, Tables
from fudlr.data.columns import KEYS, ROW, as_ids, find_column, roles
from fudlr.data.interactions import DataWarning
from fudlr.data.text import (
    RECORD,
    UNIT,
    check_fields,
    decode,
    listed,
    one_line,
    read_bytes,
    read_fields,
    shown,
    unquoted,
)

SEPARATORS = ",\t;|"
EVENT_FILES = ("interactions", "ratings", "events")
USER_FILES = ("users", "user")
ITEM_FILES = ("items", "item", "movies", "books")
CHUNK = 100_000  # JSON rows held as Python objects at a time

Row = dict[str, Any]


def _first_line(text: bytes, label: str) -> tuple[list[str], str]:
    """Fields and separator of the first line: the separator that gives the most fields."""
    line = text.split(b"\n", 1)[0].decode()
    separator = max(SEPARATORS, key=line.count)
    separator = separator if separator in line else " "
    try:
        fields = [n.strip() for n in next(csv.reader([line], delimiter=separator, strict=True))]
    except (csv.Error, StopIteration) as error:
        raise DataError(f"{label} was to be read", f"its header: {error}", "Mend it") from error
    return fields, separator


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _names(fields: list[str], label: str) -> list[str]:
    """The names of a header.

    Raises:
        DataError: A name that stands twice, or a first line that is a row of the data.
    """
    if any(_is_number(field) for field in fields) and not roles(fields, {}):
        raise DataError(
            f"{label} was to be read",
            f"it seems to have no header: its first line is {listed(fields, 6)}",
            "Name the columns by their numbers, data.columns.user=1, data.columns.item=2, "
            "data.columns.time=4, or write a first line with their names",
        )
    if fields[0] == "" and "index" not in fields:
        fields = ["index", *fields[1:]]  # as pandas writes one
    if len(set(fields)) < len(fields) or "" in fields:
        strange = next(n for n in fields if n == "" or fields.count(n) > 1)
        raise DataError(
            f"{label} was to be read",
            f"its header has the name {shown(strange)} " + ("twice" if strange else "for a column"),
            "The first line names every column, each by a name of its own",
        )
    return fields


def read_csv(path: Path, numbered: bool = False) -> pl.DataFrame:
    """Read a table, all of it as text; the separator is found in the first line.

    Args:
        path: the file, UTF-8, UTF-16 with its mark, or, with a warning, Windows' Latin-1.
        numbered: it has no header, and its columns are called 1, 2, ...

    Raises:
        DataError: not text, no rows, a row with too few or too many fields.
    """
    label = str(path)
    text = decode(read_bytes(path), label, "utf-8", "cp1252")
    fields, separator = _first_line(text, label)
    names = [str(n + 1) for n in range(len(fields))] if numbered else _names(fields, label)
    body = text if numbered else text.partition(b"\n")[2]
    if not body:
        raise DataError(f"{label} was to be read", "it has a header and no rows", "Fetch it again")
    if b'"' in body:
        if UNIT.encode() in body or RECORD.encode() in body:
            raise DataError(f"{label} was to be read", "it is not text", "Write it again")
        body = unquoted(body, label, len(names), separator, 1 if numbered else 2)
        return read_fields(body, label, UNIT, tuple(names), RECORD)
    lines = body if numbered else separator.join("x" * len(names)).encode() + b"\n" + body
    check_fields(lines, label, len(names), separator)
    return read_fields(body, label, separator, tuple(names))


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


NESTED = object()


def _cell(value: Any) -> Any:
    """Text, a list of texts, None, or `NESTED` where it is neither."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list) and not any(isinstance(v, dict | list) for v in value):
        return [str(_cell(v) or "") for v in value]
    return NESTED


def read_json(path: Path, only: tuple[str, ...] | None = None) -> pl.DataFrame:
    """Read JSON or JSONL rows into columns of text, or of lists of text.

    Columns of nested values, such as `images` of Amazon's items, are left out with a warning.

    Args:
        path: the file.
        only: read these columns alone.
    """
    chunks: list[pl.DataFrame] = []
    rows: list[dict[str, Any]] = []
    lists: set[str] = set()
    nested: dict[str, int] = {}
    names: dict[str, None] = dict.fromkeys(only or ())
    for number, row in json_rows(path):
        cells = {n: _cell(v) for n, v in row.items() if not only or n in only}
        names |= dict.fromkeys(cells)
        lists |= {n for n, v in cells.items() if isinstance(v, list)}
        for name in (n for n, v in cells.items() if v is NESTED):
            nested.setdefault(name, number)
        rows.append(cells)
        if len(rows) == CHUNK:
            chunks.append(_frame(path, rows, list(names), lists, set(nested)))
            rows = []
    chunks.append(_frame(path, rows, list(names), lists, set(nested)))
    if nested and only:
        name = next(iter(nested))
        raise DataError(
            f"{path} was to be read",
            f"row {nested[name]} has nested values in `{name}`",
            "Ids and times are texts or numbers: name another column",
        )
    if nested:
        text = f"{path.name}: columns of nested values are left out: {listed(nested)}"
        warnings.warn(DataWarning(text, "nested", len(nested)), stacklevel=2)
    try:
        return pl.concat([c for c in chunks if c.height], how="diagonal").drop(
            list(nested), strict=False
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise DataError(
            f"{path} was to be read", one_line(error), "Give every row the same kinds of fields"
        ) from error


def _frame(
    path: Path, rows: list[Row], names: list[str], lists: set[str], nested: set[str]
) -> pl.DataFrame:
    columns = []
    for name in names:
        if name in nested:
            continue
        values = [row.get(name) for row in rows]
        try:
            if name in lists:
                split = [[v] if isinstance(v, str) else v or [] for v in values]
                columns.append(pl.Series(name, split, dtype=pl.List(pl.String)))
            else:
                columns.append(pl.Series(name, values, dtype=pl.String))
        except UnicodeEncodeError as error:
            raise DataError(
                f"{path} was to be read",
                f"a value of `{shown(name)}` is no text: it holds half of a character "
                f"({shown(error.object[error.start : error.end])})",
                "Write it again as UTF-8",
            ) from error
    return pl.DataFrame(columns)


READ: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_csv,
    ".dat": read_csv,
    ".parquet": read_parquet,
    ".json": read_json,
    ".jsonl": read_json,
}


def ending(path: Path) -> str:
    """What the file's name ends with, less `.gz`."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def stem(path: Path) -> str:
    """The file's name without that."""
    return path.name.removesuffix(".gz").removesuffix(ending(path))


def tables_in(folder: Path) -> list[Path]:
    """Files of a folder that may be tables."""
    return sorted(f for f in folder.iterdir() if ending(f) in READ and f.is_file())


def column_names(path: Path) -> list[str]:
    """Names of a table's columns, by its first line alone; none where it is not one."""
    try:
        if READ[ending(path)] is read_json:
            return list(next(json_rows(path))[1])
        if ending(path) == ".parquet":
            return list(pl.read_parquet_schema(path))
        label = str(path)
        return _names(
            _first_line(decode(read_bytes(path), label, "utf-8", "cp1252", quiet=True), label)[0],
            label,
        )
    except (DataError, OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return []


def _one(found: list[Path], asked: str) -> Path | None:
    if len(found) > 1:
        raise DataError(
            asked, f"there are several: {', '.join(f.name for f in found)}", "Keep the one you mean"
        )
    return found[0] if found else None


def find_table(
    path: Path, name: str | None, columns: Mapping[str, str] | None = None
) -> Path | None:
    """The file of interactions: `path` itself, or in the folder `path` the one that it must be."""
    if not path.is_dir():
        return path if ending(path) in READ else None
    files = tables_in(path)
    for wanted in (name,) if name else EVENT_FILES:
        found = [f for f in files if stem(f) == wanted]
        if found:
            return _one(found, f"the interactions in {path} were to be read")
    rest = [f for f in files if stem(f) not in USER_FILES + ITEM_FILES]
    if len(rest) > 1:
        rest = [f for f in rest if {"user", "item"} <= roles(column_names(f), columns or {})]
    return rest[0] if len(rest) == 1 and not name else None


def table_tables(path: Path, name: str | None, columns: Mapping[str, str]) -> Tables:
    """A table of interactions with tables of users and of items beside it where they exist.

    Args:
        path: the file, or the folder that holds it.
        name: the file's name without ending, in a folder that holds several.
        columns: the caller's mapping; numbers for names say that there is no header.

    Raises:
        DataError: what is missing, truncated or does not match.
        UsageError: a column that was named and does not exist.
    """
    file = find_table(path, name, columns)
    if file is None:
        raise DataError(
            f"a table of interactions was to be read from {path}",
            "it is not clear which file that is",
            f"Name the file, or call it {EVENT_FILES[0]} with one of {', '.join(READ)}",
        )
    numbered = any(columns.get(role, "").isdigit() for role in KEYS)
    reader = READ[ending(file)]
    if reader is read_csv:
        frame = read_csv(file, numbered)
    elif reader is read_json:  # the key columns alone, as the rest may be nested
        _, row = next(json_rows(file))
        wanted = [role for role in KEYS if columns.get(role) != ROW]
        frame = read_json(
            file, tuple(find_column(list(row), r, columns, str(file)) for r in wanted)
        )
    else:
        frame = reader(file)
    first = 2 if reader is read_csv and not numbered else 1
    sides = _sides(file, path.is_dir(), frame, {} if numbered else columns)
    return Tables(stem(file), Table(frame, str(file), first), *sides)


def _sides(
    file: Path, whole: bool, events: pl.DataFrame, columns: Mapping[str, str]
) -> tuple[Table | None, Table | None]:
    """The tables of users and items beside `file`: by their names, or by their columns.

    A table under a name of its own is taken where it alone has the one id and not the other, and
    knows all of the interactions' ids. What is taken so, and what is left, is said.
    """
    rest = [f for f in tables_in(file.parent) if f != file]
    found: dict[str, Path] = {}
    for role, stems in (("user", USER_FILES), ("item", ITEM_FILES)):
        named = [f for s in stems for f in rest if stem(f) == s]
        side = _one(named, f"the table of {role}s beside {file} was to be read")
        if side:
            found[role] = side
    rest = [f for f in rest if f not in found.values()]
    about = {f: roles(column_names(f), columns) & {"user", "item"} for f in rest}
    said, tables = [], {role: _side_table(side) for role, side in found.items()}
    for role in {"user", "item"} - set(found):
        fitting = [f for f, has in about.items() if has == {role}]
        table = _covering(fitting[0], events, role, columns) if len(fitting) == 1 else None
        if table:
            tables[role] = table
            rest.remove(fitting[0])
            said.append(f"{fitting[0].name} is read as the table of {role}s")
    left = [f for f in rest if len(about[f]) == 1 or (whole and ending(f) != ".txt")]
    if left:
        names = listed([f.name for f in left], 5)
        said.append(f"not read: {names} (call tables of users and items users.* and items.*)")
    for text in sorted(said):
        warnings.warn(DataWarning(f"{stem(file)}: {text}", "side_tables", 1), stacklevel=4)
    return tables.get("user"), tables.get("item")


def _side_table(path: Path) -> Table:
    reader = READ[ending(path)]
    return Table(reader(path), str(path), 2 if reader is read_csv else 1)


def _covering(
    path: Path, events: pl.DataFrame, role: str, columns: Mapping[str, str]
) -> Table | None:
    """The table at `path` where it knows every id of the interactions."""
    try:
        table = _side_table(path)
        known, asked = (
            as_ids(f[find_column(f.columns, role, columns, "")], "", 1)
            for f in (table.frame, events)
        )
    except (DataError, pl.exceptions.PolarsError):
        return None
    return table if bool(asked.is_in(known.unique().implode()).all()) else None
