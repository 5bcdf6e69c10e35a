"""Text tables: bytes to fields and numbers, with the line named where something is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from fudlr.common.errors import DataError


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        DataError: It cannot be read, or it is empty.
    """
    asked = f"{path} was to be read"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(asked, str(error.strerror or error), "Check the path") from error
    if not raw.strip():
        raise DataError(asked, "it is empty", "Fetch or write it again")
    return raw


def decode(raw: bytes, label: str, *encodings: str) -> bytes:
    """Return a table as UTF-8 with plain line ends, by the first of `encodings` that fits.

    Raises:
        DataError: None fits; the message names the line where the last one failed.
    """
    failed: UnicodeDecodeError | LookupError | None = None
    for encoding in encodings:
        try:
            text = raw.decode(encoding)
            break
        except (UnicodeDecodeError, LookupError) as error:
            failed = error
    else:
        start = failed.start if isinstance(failed, UnicodeDecodeError) else 0
        line = raw.count(b"\n", 0, start) + 1
        raise DataError(
            f"{label} was to be read as {' or '.join(encodings)}",
            f"line {line} is not ({failed})",
            "Name the file's encoding where there is a choice, or write it as UTF-8 (older data "
            "sets are often in latin-1)",
        ) from failed
    return text.removeprefix("\ufeff").replace("\r\n", "\n").rstrip("\n").encode()


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
    text: bytes, label: str, separator: str, columns: tuple[str, ...], quote: str | None = None
) -> pl.DataFrame:
    """Parse lines without a header, whose fields were counted, into columns of text."""
    try:
        frame = pl.read_csv(
            text,
            separator=separator,
            has_header=False,
            new_columns=list(columns),
            schema=dict.fromkeys(columns, pl.String),
            quote_char=quote,
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise DataError(
            f"{label} was to be read", one_line(error), "Mend the file, or write it again"
        ) from error
    return frame.fill_null("")


def numbers(column: pl.Series, label: str, first: int = 2) -> pl.Series:
    """Parse a column of numbers; an empty field is null, anything else must be a finite number.

    Args:
        column: [N] text.
        label: what to call the file.
        first: the line of the first value.
    """
    values = column.replace("", None).cast(pl.Float64, strict=False)
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
