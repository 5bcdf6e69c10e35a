"""RecBole's atomic files: tab-separated `.inter`, `.item`, `.user` with `name:type` headers.

Format: RecBole's documentation, "Atomic files". They are read from a folder, or in place from
inside a wheel or zip.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.build import Table, Tables, split_texts
from fudlr.data.columns import assemble
from fudlr.data.interactions import Interactions
from fudlr.data.text import check_fields, decode, numbers, read_fields, shown

TYPES = ("token", "token_seq", "float", "float_seq")
ENDINGS = (".inter", ".item", ".user")


@dataclass(frozen=True)
class _Folder:
    """Files in a folder or in an archive, found by their name alone."""

    path: Path
    members: tuple[str, ...]
    archive: bool

    @classmethod
    def open(cls, path: Path) -> _Folder:
        if path.is_dir():
            files = (file for file in path.rglob("*") if file.suffix in ENDINGS)
            return cls(path, tuple(sorted(str(file.relative_to(path)) for file in files)), False)
        asked = f"RecBole files were to be read from {path}"
        if not path.exists():
            raise DataError(asked, "there is no such folder or archive", "Check the path")
        try:
            with zipfile.ZipFile(path) as archive:
                return cls(path, tuple(archive.namelist()), True)
        except zipfile.BadZipFile as error:
            raise DataError(
                asked,
                f"it is neither a folder nor a whole zip or wheel ({error})",
                "Give the folder that holds the .inter file, or fetch the archive again",
            ) from error

    def find(self, name: str) -> str | None:
        """Return the one member of that file name, or None."""
        found = [member for member in self.members if PurePosixPath(member).name == name]
        if len(found) > 1:
            raise DataError(
                f"{name} was to be read from {self.path}",
                f"there are several: {', '.join(found)}",
                "Give the folder that holds the one you mean",
            )
        return found[0] if found else None

    def read(self, member: str) -> bytes:
        try:
            if not self.archive:
                return (self.path / member).read_bytes()
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(member)
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise DataError(
                f"{member} was to be read from {self.path}", str(error), "Check or fetch it again"
            ) from error


def _header(line: str, label: str) -> dict[str, str]:
    """Parse `name:type` fields."""
    columns: dict[str, str] = {}
    for field in line.split("\t"):
        name, _, kind = field.strip().rpartition(":")
        if not name or kind not in TYPES or name in columns:
            raise DataError(
                f"{label} was to be read as a RecBole atomic file",
                f"its header has the field {shown(field)}",
                f"Each field is a name of its own, a colon and one of {', '.join(TYPES)}",
            )
        columns[name] = kind
    return columns


def _typed(column: pl.Series, kind: str, label: str) -> pl.Series:
    """Sequences as lists, split at spaces or, as in the Amazon sets, where quotes are."""
    if kind in ("float", "float_seq"):
        parts = column.str.split(" ").explode() if kind == "float_seq" else column
        numbers(parts.fill_null("").alias(column.name), label)
    return split_texts(column, " ") if kind.endswith("_seq") else column


def _read_table(folder: _Folder, name: str, encoding: str) -> Table | None:
    """Read one atomic file with its declared types; None where there is no such file."""
    member = folder.find(name)
    if member is None:
        return None
    label = f"{folder.path.name}/{member}"
    text = decode(folder.read(member), label, encoding)
    if not text:
        raise DataError(f"{label} was to be read", "it is empty", "Fetch or write it again")
    columns = _header(text.split(b"\n", 1)[0].decode(), label)
    check_fields(text, label, len(columns))
    if b"\n" not in text:
        raise DataError(f"{label} was to be read", "it has a header and no rows", "Fetch it again")
    frame = read_fields(text.split(b"\n", 1)[1], label, "\t", tuple(columns))
    if name.endswith(".inter"):  # ids and times have their own types, whatever the header says
        return Table(frame, label)
    return Table(frame.with_columns(_typed(frame[c], kind, label) for c, kind in columns.items()),
                 label)  # fmt: skip


def _only_name(folder: _Folder, name: str | None) -> str:
    """Return the name, or the one data set's that is there."""
    found = sorted({PurePosixPath(m).stem for m in folder.members if m.endswith(".inter")})
    if name in found or (name is None and len(found) == 1):
        return name or found[0]
    asked = "a data set" if name is None else f"the data set {name}"
    raise DataError(
        f"{asked} was to be read from {folder.path}",
        f"there is no {name}.inter" if name else f"it holds {len(found)}",
        f"Name one of {', '.join(found)}" if found else "Check the path: it has no .inter file",
    )


def recbole_tables(path: Path, name: str | None = None, encoding: str = "utf-8") -> Tables:
    """`name.inter` with `name.item` and `name.user` where they exist; see `read_recbole`."""
    folder = _Folder.open(path)
    name = _only_name(folder, name)
    events = _read_table(folder, f"{name}.inter", encoding)
    assert events is not None
    sides = (_read_table(folder, f"{name}.{kind}", encoding) for kind in ("user", "item"))
    return Tables(name, events, *sides)


def read_recbole(
    path: Path | str, name: str | None = None, encoding: str = "utf-8"
) -> Interactions:
    """Read `name.inter` with `name.item` and `name.user` where they exist.

    Args:
        path: a folder (searched with its subfolders), or a zip or wheel that is read in place.
        name: the data set's name, such as `ml-100k`; may be left out where there is one alone.
        encoding: of all three files.

    Returns:
        Interactions; `class` and the like become `genres` (list of str), `movie_title` and the like
        become `title`, made distinct by year and, where that does not do, by id.

    Raises:
        DataError: what is missing, truncated or does not match, with file and line.
    """
    return assemble(recbole_tables(Path(path), name, encoding), {})
