"""Text tables: bytes to fields and numbers, with the line named where something is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import warnings
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.interactions import DataWarning

GZIP = b"\x1f\x8b"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
UNIT, RECORD = "\x1f", "\x1e"  # separators that are in no text


def read_bytes(path: Path) -> bytes:
    """Read a whole file, also one that gzip packed.

    Raises:
        DataError: It cannot be read, or it is empty.
    """
    asked = f"{path} was to be read"
    try:
        raw = path.read_bytes()
        if raw.startswith(GZIP):
            raw = gzip.decompress(raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(asked, f"it is no whole gzip file ({error})", "Fetch it again") from error
    except OSError as error:
        raise DataError(asked, str(error.strerror or error), "Check the path") from error
    if not raw.strip():
        raise DataError(asked, "it is empty", "Fetch or write it again")
    return raw


def decode(raw: bytes, label: str, *encodings: str, quiet: bool = False) -> bytes:
    """Return a table as UTF-8 with plain line ends, by the first of `encodings` that fits.

    UTF-16 is known by its first bytes. Where another encoding than the first has to be taken, this
    is said, unless `quiet`.

    Raises:
        DataError: None fits, or there are zero bytes; the message names the line.
    """
    failed: UnicodeDecodeError | LookupError | None = None
    for encoding in ("utf-16",) if raw[:2] in UTF16 else encodings:
        try:
            text = raw.decode(encoding)
            break
        except (UnicodeDecodeError, LookupError) as error:
            failed = failed or error
    else:
        start = failed.start if isinstance(failed, UnicodeDecodeError) else 0
        raise DataError(
            f"{label} was to be read as {' or '.join(encodings)}",
            f"line {_line(raw, start)} is not ({failed})",
            "Write it as UTF-8 (older data sets are often in latin-1)",
        ) from failed
    if isinstance(failed, UnicodeDecodeError) and not quiet:
        where = f"line {_line(raw, failed.start)} is not UTF-8"
        warnings.warn(
            DataWarning(f"{label}: {where}, so that it was read as {encoding}", "encoding"),
            stacklevel=2,
        )
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{label} was to be read", f"line {line} holds zero bytes", "Write it as text"
        )
    return text.removeprefix("\ufeff").replace("\r\n", "\n").rstrip("\n").encode()


def _line(raw: bytes, at: int) -> int:
    return raw.count(b"\n", 0, at) + 1


def unquoted(text: bytes, label: str, n_columns: int, separator: str, first: int = 2) -> bytes:
    """Lines of a CSV with quotes as lines of units, so that no field holds a separator.

    An inch sign within a field is a character; quotes at both ends are taken off, and those within
    that are doubled, or have a backslash, are single.

    Raises:
        DataError: A row with too few or too many fields, or a quote that is never closed.
    """
    for escape in (None, "\\") if b'\\"' in text else (None,):
        lines = csv.reader(
            io.StringIO(text.decode(), newline=""),
            delimiter=separator,
            escapechar=escape,
            strict=True,
        )
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
    raise DataError(
        f"{label} was to be read",
        found,
        'Mend the line: a quoted field ends with a quote, and quotes in it are doubled ("")',
    )


def check_fields(text: bytes, label: str, n_columns: int, separator: str = "\t") -> None:
    """Refuse a row with more or fewer fields than there should be: a truncated or broken file."""
    data = np.frombuffer(text, dtype=np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(data == ord("\n")) + 1])
    fields = np.add.reduceat(data == ord(separator), starts, dtype=np.int64) + 1
    wrong = np.flatnonzero(fields != n_columns)
    if wrong.size:
        raise DataError(
            f"{label} was to be read",
            f"line {wrong[0] + 1} has {fields[wrong[0]]} fields, {n_columns} are expected"
            + (f" ({wrong.size} such lines)" if wrong.size > 1 else ""),
            "The file is truncated, damaged or of another form: fetch it again, or mend the line",
        )


def read_fields(
    text: bytes, label: str, separator: str, columns: tuple[str, ...], ends: str = "\n"
) -> pl.DataFrame:
    """Parse lines without a header, whose fields were counted, into columns of text."""
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
        raise DataError(
            f"{label} was to be read", one_line(error), "Mend the file, or write it again"
        ) from error
    return frame.fill_null("")


def numbers(column: pl.Series, label: str, first: int = 2) -> pl.Series:
    """Parse a column of numbers; an empty field is null, anything else must be a finite number.

    Whole numbers stay whole: as floats, nanoseconds less than 256 apart would be equal.

    Args:
        column: [N] text.
        label: what to call the file.
        first: the line of the first value.
    """
    text = column.replace("", None)
    values = text.cast(pl.Int64, strict=False)
    if values.null_count() == text.null_count():
        return values
    values = text.cast(pl.Float64, strict=False)
    bad = (values.is_null() & (column != "")) | ~values.is_finite().fill_null(True)
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise DataError(
            f"{label} was to be read",
            f"line {row + first} has {shown(column[row])} in the number column `{column.name}`",
            "Give a finite number",
        )
    return values


def refuse_blank(ids: pl.Series, label: str, first: int = 2) -> None:
    """Refuse a row without an id."""
    blank = (ids.str.strip_chars() == "").fill_null(True)
    if blank.any():
        raise DataError(
            f"{label} was to be read",
            f"line {int(blank.arg_max() or 0) + first} has an empty `{ids.name}`",
            "Every row needs its id",
        )


def refuse_missing(times: pl.Series, label: str, first: int = 2) -> None:
    """Refuse a row without a time."""
    blank = times.is_null()
    if blank.any():
        raise DataError(
            f"{label} was to be read",
            f"line {int(blank.arg_max() or 0) + first} has no {times.name}",
            "Without times there is no order to learn from: give one for every row",
        )


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
