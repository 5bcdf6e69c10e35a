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
from fudlr.data.instructions import FIELDS, SUFFIXES, read_instructions
from fudlr.data.interactions import Interactions
from fudlr.data.json_rows import json_rows
from fudlr.data.minionerec import minionerec_files, minionerec_tables
from fudlr.data.movielens import read_dat, read_u_data
from fudlr.data.recbole import ENDINGS, inter_files, recbole_tables
from fudlr.data.saved_datasets import MARKERS, saved_tables
from fudlr.data.sequences import is_sequences, sequence_tables
from fudlr.data.tables import READ, find_table, table_tables
from fudlr.data.text import part_files, unread

Columns = Mapping[str, str]
HEAD = 4096  # bytes of a file that are looked at
ZIP = b"PK\x03\x04"
UNREAD = (".zst", ".bz2", ".xz", ".7z", ".rar", ".tar", ".tgz", ".xlsx", ".xls", ".ods", ".arrow",
          ".feather", ".orc", ".avro", ".npy", ".npz", ".pkl", ".h5", ".sqlite", ".db")  # fmt: skip
LARGEST = 2**36  # bytes that are unpacked from an archive

RATING_LINE = re.compile(rb"[^:\n]+::[^:\n]+::[^:\n]+::")


@dataclass(frozen=True)
class Reader:
    """A form of data.

    Args:
        about: what it is, for messages and the documentation.
        matches: whether a path holds data of this form, by a look at names and first lines.
        read: path and columns to interactions, or to tables that become ones.
        columns: whether a mapping of columns means anything to it.
    """

    about: str
    matches: Callable[[Path, Columns], bool]
    read: Callable[[Path, Columns], Interactions | Tables]
    columns: bool = False


def _head(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(HEAD)


def _is_dat(path: Path, _: Columns) -> bool:
    file = path / "ratings.dat" if path.is_dir() else path
    return RATING_LINE.match(_head(file)) is not None


def _is_instructions(path: Path, columns: Columns) -> bool:
    files = part_files(path, SUFFIXES)
    if not files:
        return False
    try:
        _, row = next(json_rows(files[0]))
    except DataError:
        return False
    return set(FIELDS) <= set(row) and roles(list(row), columns) < set(KEYS)


def _is_sequences(path: Path, columns: Columns) -> bool:
    files = part_files(path)
    return bool(files) and not columns and is_sequences(_head(files[0]))


READERS: dict[str, Reader] = {
    "recbole": Reader(
        "RecBole's atomic files: NAME.inter, NAME.item, NAME.user",
        lambda path, _: bool(inter_files(path)),
        lambda path, _: recbole_tables(path),
        columns=True,
    ),
    "movielens-dat": Reader(
        "MovieLens' ratings.dat, users.dat, movies.dat with ::",
        _is_dat,
        lambda path, _: read_dat(path),
    ),
    "movielens-u": Reader(
        "MovieLens-100k's u.data, u.user, u.item",
        lambda path, _: path.name == "u.data" or (path / "u.data").is_file(),
        lambda path, _: read_u_data(path),
    ),
    "datasets": Reader(
        "a folder that Hugging Face `datasets` wrote with save_to_disk",
        lambda path, _: any((path / marker).is_file() for marker in MARKERS),
        saved_tables,
        columns=True,
    ),
    "instructions": Reader(
        "JSON or JSONL of instruction, input, output, as TALLRec and BIGRec write them",
        _is_instructions,
        lambda path, _: read_instructions(path),
    ),
    "sequences": Reader(
        "a line a user, `user item item ...`; a folder's train and test together",
        _is_sequences,
        lambda path, _: sequence_tables(path),
    ),
    "minionerec": Reader(
        "MiniOneRec's train/, valid/ and test/NAME.csv with histories in ids and semantic IDs",
        lambda path, columns: not columns and bool(minionerec_files(path)),
        lambda path, _: minionerec_tables(path),
    ),
    "table": Reader(
        "CSV, TSV, Parquet, JSON or JSONL of interactions, also .gz; users.* and items.* beside it",
        lambda path, columns: find_table(path, columns) is not None,
        table_tables,
        columns=True,
    ),
}


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The tables in a zip archive or wheel as a folder for as long; another path as it is."""
    if not _head(path).startswith(ZIP) or path.suffix.lower() in UNREAD:
        yield path
        return
    asked = f"data were to be read from {path}"
    with tempfile.TemporaryDirectory(prefix="fudlr.") as folder:
        known = {*READ, *ENDINGS, ".gz", ".data", ".genre"}
        try:
            with zipfile.ZipFile(path) as archive:
                members = [
                    m for m in archive.infolist()
                    if PurePosixPath(m.filename).suffix.lower() in known
                    and "__MACOSX" not in m.filename
                ]  # fmt: skip
                if sum(member.file_size for member in members) > LARGEST:
                    raise DataError(asked, "it unpacks to more than 64 GiB", "Unpack it yourself")
                archive.extractall(folder, members)
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise DataError(asked, str(error), "Unpack it yourself, or fetch it again") from error
        inside = Path(folder)
        while len(found := list(inside.iterdir())) == 1 and found[0].is_dir():
            inside = found[0]
        yield inside


def find_form(path: Path, columns: Columns | None = None, named: Path | None = None) -> str:
    """The first form of `READERS` that the data at `path` have; `named` is the archive's path.

    Raises:
        DataError: there is nothing, or it is of no known form.
    """
    asked = f"data were to be read from {named or path}"
    if not path.exists():
        raise DataError(asked, "there is no such file or folder", "Check the path")
    found = [form for form, reader in READERS.items() if reader.matches(path, columns or {})]
    if not found and path.suffix.lower() in UNREAD:
        remedy = "Unpack it, or pack it with gzip or zip; write other tables as CSV or Parquet"
        raise DataError(asked, f"files that end in {path.suffix} are not read", remedy)
    if not found:
        forms = "; ".join(f"{form}: {reader.about}" for form, reader in READERS.items())
        several = "Where a folder holds several tables, name the file"
        raise DataError(
            asked, "what is there has no form that is known", f"The forms are {forms}. {several}"
        )
    return found[0]


def read_data(path: Path | str, columns: Columns | None = None) -> Interactions:
    """Read data of any form of `READERS`, found by a look at the files.

    Args:
        path: a file, or a folder with the files of one data set; or a zip archive of one.
        columns: which column is `user`, `item` and `time` in tables, and `title` and `genres` in
            the items' table, where they have names of their own.

    Raises:
        UsageError: a mapping that means nothing, or a column that is not there.
        DataError: what is missing, truncated or does not match, with the file, and the line where
            there is one.
    """
    path, columns = Path(path), check_columns(columns)
    try:
        with _unpacked(path) as inside:
            form = find_form(inside, columns, path)
            reader = READERS[form]
            if columns and not reader.columns:
                raise UsageError(
                    f"columns of {path} were named",
                    f"data of the form {form} have fixed columns",
                    "Leave data.columns out",
                )
            read = reader.read(inside, columns)
            return assemble(read, columns) if isinstance(read, Tables) else read
    except OSError as error:
        raise unread(path, str(error.strerror or error), "Check its permissions") from error
    except MemoryError as error:
        raise unread(path, "it does not fit into memory", "Give fewer interactions") from error
