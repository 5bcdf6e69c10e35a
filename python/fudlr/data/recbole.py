"""RecBole's atomic files: tab-separated `.inter`, `.item`, `.user` with `name:type` headers.

Format: RecBole's documentation, "Atomic files".
"""

from __future__ import annotations

from pathlib import Path

from fudlr.common.errors import DataError
from fudlr.data.build import Tables, split_texts
from fudlr.data.text import Table, read_fields, read_text, shown, unread

TYPES = ("token", "token_seq", "float", "float_seq")
ENDINGS = (".inter", ".item", ".user")


def inter_files(path: Path) -> list[Path]:
    """The file `path`, or all of interactions in the folder `path` and its subfolders."""
    if not path.is_dir():
        return [path] if path.suffix == ".inter" else []
    return sorted(path.rglob("*.inter"))


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


def _read_table(path: Path) -> Table:
    """Read one atomic file with its declared types."""
    label = str(path)
    header, _, body = read_text(path, "utf-8").partition(b"\n")
    columns = _header(header.decode(), label)
    if not body:
        raise unread(label, "it has a header and no rows", "Fetch it again")
    frame = read_fields(body, label, "\t", tuple(columns))
    if path.suffix != ".inter":  # there ids and times have their own types, whatever is declared
        lists = [name for name, kind in columns.items() if kind.endswith("_seq")]
        # At spaces or, as in the Amazon sets, where quotes are.
        frame = frame.with_columns(split_texts(frame[name], " ") for name in lists)
    return Table(frame, label)


def recbole_tables(path: Path) -> Tables:
    """`NAME.inter` with `NAME.item` and `NAME.user` where they exist.

    Args:
        path: the `.inter` file, or a folder that is searched with its subfolders.
    """
    found = inter_files(path)
    if len(found) != 1:
        names = ", ".join(str(f.relative_to(path)) for f in found)
        asked = f"a data set was to be read from {path}"
        raise DataError(asked, f"it holds {len(found)}", f"Name one of {names}")
    (file,) = found
    sides = [file.with_suffix(ending) for ending in (".user", ".item")]
    return Tables(
        file.stem, _read_table(file), *(_read_table(s) if s.is_file() else None for s in sides)
    )
