"""Text tables: bytes to fields and numbers, with the line named where something is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.interactions import DataWarning

PARTS = ("train", "valid", "val", "test")  # of a data set in several files
UNIT, RECORD = "\x1f", "\x1e"  # separators that are in no text


def unread(label: object, found: str, remedy: str) -> DataError:
    """The error that something could not be read."""
    return DataError(f"{label} was to be read", found, remedy)


def warn(text: str, kind: str = "", count: int = 0) -> None:
    """Say what a person should know of data that are used all the same."""
    warnings.warn(DataWarning(text, kind, count), stacklevel=3)


@dataclass(frozen=True)
class Table:
    """Columns as they were read, what to call them in messages, and the line of the first row."""

    frame: pl.DataFrame
    label: str
    first: int = 2

    def refuse(
        self, bad: pl.Series, found: str, remedy: str, values: pl.Series | None = None
    ) -> None:
        """Refuse the first row that is `bad`, naming its line and its value."""
        if bad.any():
            row = int(bad.arg_max() or 0)
            value = "" if values is None else f"{shown(values[row])} "
            raise unread(self.label, f"line {row + self.first} has {value}{found}", remedy)

    def numbers(self, column: pl.Series) -> pl.Series:
        """A column of text as numbers; an empty field is null, others must be finite numbers.

        Whole numbers stay whole: as floats, nanoseconds less than 256 apart would be equal.
        """
        text = column.replace("", None)
        values = text.cast(pl.Int64, strict=False)
        if values.null_count() == text.null_count():
            return values
        values = text.cast(pl.Float64, strict=False)
        bad = (values.is_null() & (column != "")) | ~values.is_finite().fill_null(True)
        found = f"in the number column `{column.name}`"
        self.refuse(bad, found, "Give a finite number", column)
        return values


def part_files(path: Path, endings: tuple[str, ...] = ("",)) -> list[Path]:
    """The file `path`; or in a folder its train, valid and test, or the only file there is."""
    if not path.is_dir():
        return [path] if path.name.endswith(endings) and path.is_file() else []
    files = sorted(f for f in path.iterdir() if f.name.endswith(endings) and f.is_file())
    found = [f for part in PARTS for f in files if f.name.split(".")[0] == part]
    return found or (files if len(files) == 1 else [])


def read_text(path: Path, *encodings: str, quiet: bool = False) -> bytes:
    """A file, also one that gzip packed, as UTF-8 with plain line ends.

    It is read in the first of `encodings` that fits; UTF-16 is known by its first bytes. Where
    another encoding than the first has to be taken, this is said, unless `quiet`.
    """
    try:
        raw = path.read_bytes()
        if raw.startswith(b"\x1f\x8b"):
            raw = gzip.decompress(raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise unread(path, f"it is no whole gzip file ({error})", "Fetch it again") from error
    except OSError as error:
        raise unread(path, str(error.strerror or error), "Check the path") from error
    failed: UnicodeDecodeError | None = None
    for encoding in ("utf-16",) if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else encodings:
        try:
            text = raw.decode(encoding)
            break
        except UnicodeDecodeError as error:
            failed = failed or error
    else:
        raise unread(
            f"{path}, as {' or '.join(encodings)},",
            f"line {_line(raw, failed)} is not ({failed})",
            "Write it as UTF-8 (older data sets are often in latin-1)",
        ) from failed
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").rstrip("\n")
    text = text if "\n" in text else text.replace("\r", "\n")
    if not text.strip():
        raise unread(path, "it is empty", "Fetch or write it again")
    if failed and not quiet:
        where = f"line {_line(raw, failed)} is not UTF-8"
        warn(f"{path}: {where}, so that it was read as {encoding}", "encoding")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise unread(path, f"line {line} holds zero bytes", "Write it as text")
    return text.encode()


def _line(raw: bytes, error: UnicodeDecodeError | None) -> int:
    return raw.count(b"\n", 0, error.start if error else 0) + 1


def unquoted(text: bytes, label: str, n_columns: int, separator: str, first: int = 2) -> bytes:
    """Lines of a CSV with quotes as lines of units, so that no field holds a separator.

    An inch sign within a field is a character; quotes at both ends are taken off, and those within
    that are doubled, or have a backslash, are single.
    """
    if UNIT.encode() in text or RECORD.encode() in text:
        raise unread(label, "it is not text", "Write it again")
    for escape in (None, "\\") if b'\\"' in text else (None,):
        source = io.StringIO(text.decode(), newline="")
        lines = csv.reader(source, delimiter=separator, escapechar=escape, strict=True)
        rows, found, number = [], "", first
        try:
            for row in lines:
                if len(row) != n_columns:
                    found = f"line {number} has {len(row)} fields, {n_columns} are expected"
                    break
                rows.append(UNIT.join(row))
                number = lines.line_num + first
        except csv.Error as error:
            found = f"line {number}: {error}, which is no end of a quoted field"
        if not found:
            return RECORD.join(rows).encode()
    remedy = 'Mend the line: a quoted field ends with a quote, and quotes in it are doubled ("")'
    raise unread(label, found, remedy)


def read_fields(
    text: bytes,
    label: str,
    separator: str,
    columns: tuple[str, ...],
    *,
    first: int = 2,
    ends: str = "\n",
) -> pl.DataFrame:
    """Parse lines without a header into columns of text."""
    data = np.frombuffer(text, dtype=np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(data[:-1] == ord(ends)) + 1])
    fields = np.add.reduceat(data == ord(separator), starts, dtype=np.int64) + 1
    wrong = np.flatnonzero(fields != len(columns))
    if wrong.size:
        found = f"{fields[wrong[0]]} fields, {len(columns)} are expected"
        more = f" ({wrong.size} such lines)" if wrong.size > 1 else ""
        remedy = "The file is truncated, damaged or of another form: fetch it again, or mend it"
        raise unread(label, f"line {wrong[0] + first} has {found}{more}", remedy)
    try:
        frame = pl.read_csv(
            text,
            separator=separator,
            has_header=False,
            new_columns=list(columns),
            schema=dict.fromkeys(columns, pl.String),
            quote_char=None,
            eol_char=ends,
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise unread(label, one_line(error), "Mend the file, or write it again") from error
    return frame.fill_null("")


def shown(value: object, most: int = 60) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names for a message, the first few of many."""
    names = list(names)
    return ", ".join(shown(n) for n in names[:most]) + (", …" if len(names) > most else "")


def one_line(error: BaseException, most: int = 200) -> str:
    """The first line of an error's text, or its kind."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")[:most]
