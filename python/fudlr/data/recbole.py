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
from fudlr.data.build import TITLE_COLUMNS, Ties, build_interactions
from fudlr.data.interactions import Interactions
from fudlr.data.text import (
    check_fields,
    decode,
    listed,
    numbers,
    read_fields,
    refuse_blank,
    refuse_missing,
    shown,
)

TYPES = ("token", "token_seq", "float", "float_seq")


@dataclass(frozen=True)
class _Folder:
    """Files in a folder or in an archive, found by their name alone."""

    path: Path
    members: tuple[str, ...]
    archive: bool

    @classmethod
    def open(cls, path: Path) -> _Folder:
        if path.is_dir():
            files = (
                file for file in path.rglob("*") if file.suffix in (".inter", ".item", ".user")
            )
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
        except (OSError, zipfile.BadZipFile) as error:
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
    if kind == "float":
        return numbers(column, label)
    if kind == "token":
        return column
    parts = column.str.split(" ").list.eval(pl.element().filter(pl.element() != ""))
    if kind == "token_seq":
        return parts
    flat = parts.explode()
    numbers(flat.fill_null("").alias(column.name), label)
    return parts.cast(pl.List(pl.Float64))


def _read_table(
    folder: _Folder, name: str, required: tuple[str, ...], encoding: str
) -> pl.DataFrame | None:
    """Read one atomic file with its declared types; None where there is no such file."""
    member = folder.find(name)
    if member is None:
        return None
    label = f"{folder.path.name}/{member}"
    text = decode(folder.read(member), label, encoding)
    if not text:
        raise DataError(f"{label} was to be read", "it is empty", "Fetch or write it again")
    columns = _header(text.split(b"\n", 1)[0].decode(), label)
    missing = [column for column in required if column not in columns]
    if missing:
        raise DataError(
            f"{label} was to be read",
            f"it lacks {listed(missing)}; it has {listed(columns)}",
            "Rename or add the column in the header",
        )
    # What the method needs has its own type, whatever the header says.
    columns |= {c: "float" if c == "timestamp" else "token" for c in required}
    check_fields(text, label, len(columns))
    if b"\n" not in text:
        raise DataError(f"{label} was to be read", "it has a header and no rows", "Fetch it again")
    frame = read_fields(text.split(b"\n", 1)[1], label, "\t", tuple(columns))
    for column in (c for c in required if c.endswith("_id")):
        refuse_blank(frame[column], label)
    return frame.with_columns(
        _typed(frame[column], kind, label) for column, kind in columns.items()
    )


def _as_texts(table: pl.DataFrame | None, keep: tuple[str, ...]) -> pl.DataFrame | None:
    """Join titles that are declared as token sequences back into one text."""
    if table is None:
        return None
    lists = [c for c in keep if c in table.columns and table.schema[c] == pl.List(pl.String)]
    return table.with_columns(pl.col(c).list.join(" ") for c in lists)


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


def read_recbole(
    path: Path | str,
    name: str | None = None,
    encoding: str = "utf-8",
    ties: Ties = "item",
) -> Interactions:
    """Read `name.inter` with `name.item` and `name.user` where they exist.

    Args:
        path: a folder (searched with its subfolders), or a zip or wheel that is read in place.
        name: the data set's name, such as `ml-100k`; may be left out where there is one alone.
        encoding: of all three files.
        ties: order at the same time; see `build_interactions`.

    Returns:
        Interactions; `class` and the like become `genres` (list of str), `movie_title` and the like
        become `title`, made distinct by year and, where that does not do, by id.

    Raises:
        DataError: what is missing, truncated or does not match, with file and line.
    """
    folder = _Folder.open(Path(path))
    name = _only_name(folder, name)
    events = _read_table(folder, f"{name}.inter", ("user_id", "item_id", "timestamp"), encoding)
    assert events is not None
    refuse_missing(events["timestamp"], f"{name}.inter")
    users = _read_table(folder, f"{name}.user", ("user_id",), encoding)
    items = _read_table(folder, f"{name}.item", ("item_id",), encoding)
    return build_interactions(
        events.select("user_id", "item_id", time="timestamp"),
        users,
        _as_texts(items, TITLE_COLUMNS),
        name,
        ties,
    )
