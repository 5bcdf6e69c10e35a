"""The forms that data come in: one line of `READERS` each, told apart by what is in the files.

A new form is one file with its reader, and one line here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fudlr.common.errors import DataError, UsageError
from fudlr.data.build import Ties
from fudlr.data.columns import check_columns, has_roles
from fudlr.data.instructions import FIELDS, instruction_files, read_instructions
from fudlr.data.interactions import Interactions
from fudlr.data.movielens import read_dat, read_u_data
from fudlr.data.recbole import read_recbole
from fudlr.data.saved_datasets import is_saved_dataset, read_saved_dataset
from fudlr.data.tables import find_table, json_rows, read_table

Columns = Mapping[str, str]
HEAD = 4096  # bytes of a file that are looked at

RATING_LINE = re.compile(rb"[^:\n]+::[^:\n]+::[^:\n]+::")
U_DATA_LINE = re.compile(rb"\d+\t\d+\t\d+\t\d+\r?\n")


@dataclass(frozen=True)
class Reader:
    """A form of data.

    Args:
        about: what it is, for messages and the documentation.
        matches: whether a path holds data of this form, by a look at names and first lines.
        read: path, name, columns and order of ties to interactions.
        columns: whether a mapping of columns means anything to it.
    """

    about: str
    matches: Callable[[Path, str | None, Columns], bool]
    read: Callable[[Path, str | None, Columns, Ties], Interactions]
    columns: bool = False


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(HEAD)


def _is_recbole(path: Path, name: str | None, _: Columns) -> bool:
    if path.is_dir():
        return any(name in (None, file.stem) for file in path.rglob("*.inter"))
    return _head(path).startswith(b"PK\x03\x04")


def _is_dat(path: Path, *_: object) -> bool:
    if path.is_dir():
        return (path / "ratings.dat").is_file()
    return path.suffix == ".dat" or RATING_LINE.match(_head(path)) is not None


def _is_u_data(path: Path, *_: object) -> bool:
    if path.is_dir():
        return (path / "u.data").is_file()
    return path.name == "u.data" or U_DATA_LINE.match(_head(path)) is not None


def _is_instructions(path: Path, name: str | None, columns: Columns) -> bool:
    files = instruction_files(path, name)
    if not files:
        return False
    try:
        _, row = next(json_rows(files[0]))
    except DataError:
        return False
    return set(FIELDS) <= set(row) and not has_roles(list(row), columns)


READERS: dict[str, Reader] = {
    "recbole": Reader(
        "RecBole's atomic files: NAME.inter, NAME.item, NAME.user; also inside a zip or wheel",
        _is_recbole,
        lambda path, name, _, ties: read_recbole(path, name, ties=ties),
    ),
    "movielens-dat": Reader(
        "MovieLens' ratings.dat, users.dat, movies.dat with ::",
        _is_dat,
        lambda path, _, __, ties: read_dat(path, ties),
    ),
    "movielens-u": Reader(
        "MovieLens-100k's u.data, u.user, u.item",
        _is_u_data,
        lambda path, _, __, ties: read_u_data(path, ties),
    ),
    "datasets": Reader(
        "a folder that Hugging Face `datasets` wrote with save_to_disk",
        lambda path, *_: is_saved_dataset(path),
        read_saved_dataset,
        columns=True,
    ),
    "instructions": Reader(
        "JSON or JSONL of instruction, input, output, as TALLRec and BIGRec write them",
        _is_instructions,
        lambda path, name, *_: read_instructions(path, name),
    ),
    "table": Reader(
        "CSV, TSV, Parquet, JSON or JSONL of interactions; users.* and items.* beside it",
        lambda path, name, _: find_table(path, name) is not None,
        read_table,
        columns=True,
    ),
}


def find_form(path: Path, name: str | None = None, columns: Columns | None = None) -> str:
    """The first form of `READERS` that the data at `path` have.

    Raises:
        DataError: there is nothing, or it is of no known form.
    """
    asked = f"data were to be read from {path}"
    try:
        there = path.exists()
        found = [f for f, r in READERS.items() if there and r.matches(path, name, columns or {})]
    except OSError as error:
        raise DataError(asked, str(error.strerror), "Check the path and its permissions") from error
    if not there:
        raise DataError(asked, "there is no such file or folder", "Check the path")
    if not found:
        forms = "; ".join(f"{form}: {reader.about}" for form, reader in READERS.items())
        raise DataError(
            asked,
            "what is there has no form that is known" + (f" under the name {name}" if name else ""),
            f"The forms are {forms}. Where a folder holds several tables, name the file",
        )
    return found[0]


def read_data(
    path: Path | str,
    name: str | None = None,
    form: str | None = None,
    columns: Columns | None = None,
    ties: Ties = "item",
) -> Interactions:
    """Read data of any form of `READERS`.

    Args:
        path: a file, or a folder with the files of one data set.
        name: the data set's name without ending, where a folder holds several.
        form: a name in `READERS`; found by a look at the files where it is not given.
        columns: which column is `user`, `item` and `time` in tables, and `title` and `genres` in
            the items' table, where they have names of their own.
        ties: order at the same time; see `build_interactions`.

    Raises:
        UsageError: no such form, a mapping that means nothing, or a column that is not there.
        DataError: what is missing, truncated or does not match, with the file, and the line where
            there is one.
    """
    path, columns = Path(path), check_columns(columns)
    if form is not None and form not in READERS:
        raise UsageError(
            f"data of the form {form!r} were to be read",
            "there is none",
            f"The forms are {', '.join(READERS)}",
        )
    found = form or find_form(path, name, columns)
    if form is not None and not path.exists():
        raise DataError(f"data were to be read from {path}", "there is none", "Check the path")
    reader = READERS[found]
    if columns and not reader.columns:
        raise UsageError(
            f"columns of {path} were named",
            f"data of the form {found} have fixed columns",
            "Leave data.columns out",
        )
    try:
        return reader.read(path, name, columns, ties)
    except OSError as error:
        raise DataError(
            f"{path} was to be read", str(error.strerror or error), "Check its permissions"
        ) from error
    except MemoryError as error:
        raise DataError(
            f"{path} was to be read", "it does not fit into memory", "Give fewer interactions"
        ) from error
