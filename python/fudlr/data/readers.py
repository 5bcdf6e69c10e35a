"""The forms that data come in: one line of `READERS` each, told apart by what is in the files.

A new form is one file with its reader, and one line here.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fudlr.common.errors import DataError, UsageError
from fudlr.data.build import Tables
from fudlr.data.columns import KEYS, assemble, check_columns, roles
from fudlr.data.instructions import (
    FIELDS,
    instruction_files,
    instruction_rows,
    read_instruction_rows,
)
from fudlr.data.interactions import Interactions
from fudlr.data.movielens import read_dat, read_u_data
from fudlr.data.recbole import ENDINGS, recbole_tables
from fudlr.data.saved_datasets import is_saved_dataset, saved_tables
from fudlr.data.sequences import is_sequences, sequence_files, sequence_tables
from fudlr.data.tables import READ, Row, find_table, json_rows, table_tables

Columns = Mapping[str, str]
HEAD = 4096  # bytes of a file that are looked at
ZIP = b"PK\x03\x04"
LARGEST = 2**36  # bytes that are unpacked from an archive

RATING_LINE = re.compile(rb"[^:\n]+::[^:\n]+::[^:\n]+::")


@dataclass(frozen=True)
class Reader:
    """A form of data.

    Args:
        about: what it is, for messages and the documentation.
        matches: whether a path holds data of this form, by a look at names and first lines.
        read: path, name and columns to interactions, to tables that become ones, or to rows of
            instructions with their labels.
        columns: whether a mapping of columns means anything to it.
    """

    about: str
    matches: Callable[[Path, str | None, Columns], bool]
    read: Callable[[Path, str | None, Columns], Interactions | Tables | Iterator[tuple[str, Row]]]
    columns: bool = False


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(HEAD)


def _is_recbole(path: Path, name: str | None, _: Columns) -> bool:
    if path.is_dir():
        return any(name in (None, file.stem) for file in path.rglob("*.inter"))
    if not _head(path).startswith(ZIP):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(PurePosixPath(member).suffix in ENDINGS for member in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return True  # its reader says what is wrong


def _is_dat(path: Path, *_: object) -> bool:
    file = path / "ratings.dat" if path.is_dir() else path
    return RATING_LINE.match(_head(file)) is not None


def _is_u_data(path: Path, *_: object) -> bool:
    return (path / "u.data").is_file() if path.is_dir() else path.name == "u.data"


def _is_instructions(path: Path, name: str | None, columns: Columns) -> bool:
    files = instruction_files(path, name)
    if not files:
        return False
    try:
        _, row = next(json_rows(files[0]))
    except DataError:
        return False
    return set(FIELDS) <= set(row) and roles(list(row), columns) < set(KEYS)


def _is_sequences(path: Path, name: str | None, columns: Columns) -> bool:
    files = sequence_files(path, name)
    return bool(files) and not columns and is_sequences(_head(files[0]))


READERS: dict[str, Reader] = {
    "recbole": Reader(
        "RecBole's atomic files: NAME.inter, NAME.item, NAME.user; also inside a zip or wheel",
        _is_recbole,
        lambda path, name, _: recbole_tables(path, name),
        columns=True,
    ),
    "movielens-dat": Reader(
        "MovieLens' ratings.dat, users.dat, movies.dat with ::",
        _is_dat,
        lambda path, *_: read_dat(path),
    ),
    "movielens-u": Reader(
        "MovieLens-100k's u.data, u.user, u.item",
        _is_u_data,
        lambda path, *_: read_u_data(path),
    ),
    "datasets": Reader(
        "a folder that Hugging Face `datasets` wrote with save_to_disk",
        lambda path, *_: is_saved_dataset(path),
        saved_tables,
        columns=True,
    ),
    "instructions": Reader(
        "JSON or JSONL of instruction, input, output, as TALLRec and BIGRec write them",
        _is_instructions,
        lambda path, name, _: instruction_rows(path, name),
    ),
    "sequences": Reader(
        "a line a user, `user item item ...`; a folder's train and test together",
        _is_sequences,
        lambda path, name, _: sequence_tables(path, name),
    ),
    "table": Reader(
        "CSV, TSV, Parquet, JSON or JSONL of interactions, also .gz; users.* and items.* beside it",
        lambda path, name, columns: find_table(path, name, columns) is not None,
        table_tables,
        columns=True,
    ),
}


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A zip archive's tables in a folder that is there for as long; another path as it is."""
    if not _head(path).startswith(ZIP) or _is_recbole(path, None, {}):
        yield path
        return
    asked = f"data were to be read from {path}"
    with tempfile.TemporaryDirectory(prefix="fudlr.") as folder, zipfile.ZipFile(path) as archive:
        known = {*READ, ".gz", ".data", ".user", ".item", ".genre"}
        members = [
            m for m in archive.infolist()
            if PurePosixPath(m.filename).suffix.lower() in known and "__MACOSX" not in m.filename
        ]  # fmt: skip
        if sum(member.file_size for member in members) > LARGEST:
            raise DataError(asked, "it unpacks to more than 64 GiB", "Unpack it yourself")
        try:
            archive.extractall(folder, members)
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise DataError(asked, str(error), "Unpack it yourself, or fetch it again") from error
        inside = Path(folder)
        while len(found := list(inside.iterdir())) == 1 and found[0].is_dir():
            inside = found[0]
        yield inside


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
) -> Interactions:
    """Read data of any form of `READERS`.

    Args:
        path: a file, or a folder with the files of one data set.
        name: the data set's name without ending, where a folder holds several.
        form: a name in `READERS`; found by a look at the files where it is not given.
        columns: which column is `user`, `item` and `time` in tables, and `title` and `genres` in
            the items' table, where they have names of their own.

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
    if form is not None and not path.exists():
        raise DataError(f"data were to be read from {path}", "there is none", "Check the path")
    try:
        with _unpacked(path) as inside:
            found = form or find_form(inside, name, columns)
            reader = READERS[found]
            if columns and not reader.columns:
                raise UsageError(
                    f"columns of {path} were named",
                    f"data of the form {found} have fixed columns",
                    "Leave data.columns out",
                )
            read = reader.read(inside, name, columns)
            if isinstance(read, Interactions):
                return read
            if isinstance(read, Tables):
                return assemble(read, columns)
            return read_instruction_rows(read, path.stem)
    except OSError as error:
        raise DataError(
            f"{path} was to be read", str(error.strerror or error), "Check its permissions"
        ) from error
    except MemoryError as error:
        raise DataError(
            f"{path} was to be read", "it does not fit into memory", "Give fewer interactions"
        ) from error
