"""CSV, TSV, Parquet, JSON and JSONL: a table of interactions, side tables beside it."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.build import Tables
from fudlr.data.columns import KEYS, ROW, as_ids, find_column, roles
from fudlr.data.json_rows import json_rows, read_json
from fudlr.data.text import (
    RECORD,
    UNIT,
    Table,
    listed,
    one_line,
    read_fields,
    read_text,
    shown,
    unquoted,
    unread,
    warn,
)

SEPARATORS = ",\t;|"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
EVENT_FILES = ("interactions", "ratings", "events")
SIDE_FILES = {"user": ("users", "user"), "item": ("items", "item", "movies", "books")}


def _first_line(text: bytes, label: str) -> tuple[list[str], str]:
    """Fields and separator of the first line: the separator that gives the most fields."""
    line = text.split(b"\n", 1)[0].decode()
    separator = max(SEPARATORS, key=line.count)
    separator = separator if separator in line else " "
    try:
        fields = [n.strip() for n in next(csv.reader([line], delimiter=separator, strict=True))]
    except (csv.Error, StopIteration) as error:
        raise unread(label, f"its header: {error}", "Mend it") from error
    if not fields:
        raise unread(label, "its first line is empty", "Start with the header")
    return fields, separator


def _names(fields: list[str], label: str) -> list[str]:
    """The names of a header."""
    if any(NUMBER.fullmatch(field) for field in fields) and not roles(fields, {}):
        raise unread(
            label,
            f"it seems to have no header: its first line is {listed(fields, 6)}",
            "Name the columns by their numbers, data.columns.user=1, data.columns.item=2, "
            f"data.columns.time={min(len(fields), 4)} (row where there are no times), or write a "
            "first line with their names",
        )
    if fields[0] == "" and "index" not in fields:
        fields = ["index", *fields[1:]]  # as pandas writes one
    if len(set(fields)) < len(fields) or "" in fields:
        strange = next(n for n in fields if n == "" or fields.count(n) > 1)
        found = f"its header has the name {shown(strange)} "
        remedy = "The first line names every column, each by a name of its own"
        raise unread(label, found + ("twice" if strange else "for a column"), remedy)
    return fields


def read_csv(path: Path, numbered: bool = False) -> Table:
    """Read a table, all of it as text; the separator is found in the first line.

    Args:
        path: the file, UTF-8, UTF-16 with its mark, or, with a warning, Windows' Latin-1.
        numbered: it has no header, and its columns are called 1, 2, ...
    """
    label, first = str(path), 1 if numbered else 2
    text = read_text(path, "utf-8", "cp1252")
    fields, separator = _first_line(text, label)
    names = [str(n + 1) for n in range(len(fields))] if numbered else _names(fields, label)
    body, ends = text if numbered else text.partition(b"\n")[2], "\n"
    if not body:
        raise unread(label, "it has a header and no rows", "Fetch it again")
    if b'"' in body:
        body = unquoted(body, label, len(names), separator, first)
        separator, ends = UNIT, RECORD
    frame = read_fields(body, label, separator, tuple(names), first=first, ends=ends)
    return Table(frame, label, first)


def read_parquet(path: Path) -> Table:
    """Read a Parquet file."""
    try:
        return Table(pl.read_parquet(path, glob=False), str(path), 1)
    except (Exception, pl.exceptions.PanicException) as error:
        asked = f"{path} was to be read as Parquet"
        raise DataError(asked, one_line(error), "Fetch it or write it again") from error


READ: dict[str, Callable[[Path], Table]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_csv,
    ".dat": read_csv,
    ".parquet": read_parquet,
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
}


def ending(path: Path) -> str:
    """What the file's name ends with, less `.gz`."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(ending(path))


def _tables_in(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if ending(f) in READ and f.is_file())


def _column_names(path: Path) -> list[str]:
    """Names of a table's columns, by its first line alone; none where it is not one."""
    try:
        if READ[ending(path)] is read_json:
            return list(next(json_rows(path))[1])
        if ending(path) == ".parquet":
            return list(pl.read_parquet_schema(path))
        text = read_text(path, "utf-8", "cp1252", quiet=True)
        return _names(_first_line(text, str(path))[0], str(path))
    except (DataError, OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return []


def _named(files: list[Path], stems: tuple[str, ...], asked: str) -> Path | None:
    """The one of the files that has the first of these names that one has."""
    found = next((same for s in stems if (same := [f for f in files if _stem(f) == s])), [])
    if len(found) > 1:
        several = f"there are several: {', '.join(f.name for f in found)}"
        raise DataError(asked, several, "Keep the one you mean")
    return found[0] if found else None


def find_table(path: Path, columns: Mapping[str, str]) -> Path | None:
    """The file of interactions: `path` itself, or in the folder `path` the one that it must be."""
    if not path.is_dir():
        return path if ending(path) in READ else None
    files = _tables_in(path)
    if named := _named(files, EVENT_FILES, f"the interactions in {path} were to be read"):
        return named
    rest = [f for f in files if _stem(f) not in SIDE_FILES["user"] + SIDE_FILES["item"]]
    if len(rest) > 1:
        rest = [f for f in rest if {"user", "item"} <= roles(_column_names(f), columns)]
    return rest[0] if len(rest) == 1 else None


def table_tables(path: Path, columns: Mapping[str, str]) -> Tables:
    """A table of interactions with tables of users and of items beside it where they exist.

    Args:
        path: the file, or the folder that holds it.
        columns: the caller's mapping; numbers for names say that there is no header.
    """
    file = find_table(path, columns)
    assert file is not None  # else the form was not found
    numbered = any(columns.get(role, "").isdigit() for role in KEYS)
    reader = READ[ending(file)]
    if reader is read_csv:
        events = read_csv(file, numbered)
    elif reader is read_json:  # the key columns alone, as the rest may be nested
        names = list(next(json_rows(file))[1])
        wanted = [role for role in KEYS if columns.get(role) != ROW]
        events = read_json(
            file, tuple(find_column(names, role, columns, str(file)) for role in wanted)
        )
    else:
        events = reader(file)
    sides = _sides(file, path.is_dir(), events, {} if numbered else columns)
    return Tables(_stem(file), events, sides.get("user"), sides.get("item"))


def _sides(file: Path, whole: bool, events: Table, columns: Mapping[str, str]) -> dict[str, Table]:
    """The tables of users and items beside `file`: by their names, or by their columns.

    A table under a name of its own is taken where it alone has the one id and not the other, and
    knows all of the interactions' ids. What is taken so, and what is left, is said.
    """
    rest = [f for f in _tables_in(file.parent) if f != file]
    found, said = {}, []
    for role, stems in SIDE_FILES.items():
        named = _named(rest, stems, f"the table of {role}s beside {file} was to be read")
        if named:
            found[role] = READ[ending(named)](named)
            rest.remove(named)
    about = {f: roles(_column_names(f), columns) & {"user", "item"} for f in rest}
    for role in sorted({"user", "item"} - set(found)):
        fitting = [f for f in rest if about[f] == {role}]
        table = _covering(fitting[0], events, role, columns) if len(fitting) == 1 else None
        if table:
            found[role] = table
            rest.remove(fitting[0])
            said.append(f"{fitting[0].name} is read as the table of {role}s")
    left = [f for f in rest if len(about[f]) == 1 or (whole and ending(f) != ".txt")]
    if left:
        names = listed([f.name for f in left], 5)
        said.append(f"not read: {names} (call tables of users and items users.* and items.*)")
    for text in sorted(said):
        warn(f"{_stem(file)}: {text}", "side_tables", 1)
    return found


def _covering(path: Path, events: Table, role: str, columns: Mapping[str, str]) -> Table | None:
    """The table at `path` where it knows every id of the interactions."""
    try:
        table = READ[ending(path)](path)
        known, asked = (
            as_ids(t.frame[find_column(t.frame.columns, role, columns, "")], t)
            for t in (table, events)
        )
    except (DataError, pl.exceptions.PolarsError):
        return None
    return table if bool(asked.is_in(known.unique().implode()).all()) else None
