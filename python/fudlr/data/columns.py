"""Which column is what: names that data sets use, and the caller's own mapping over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from fudlr.common.errors import DataError, UsageError
from fudlr.data.build import GENRE_COLUMNS, TITLE_COLUMNS
from fudlr.data.text import listed, numbers, refuse_blank, refuse_missing

ALIASES = {
    "user": ("user_id", "user", "uid", "reviewer_id"),
    "item": ("item_id", "item", "iid", "movie_id", "book_id", "product_id", "parent_asin", "asin"),
    "time": ("timestamp", "time", "ts", "datetime", "date", "unix_review_time"),
}
"""Names that are understood without a mapping; capitals and underscores do not matter."""
KEYS = {"user": "user_id", "item": "item_id", "time": "time"}
OTHERS = {"title": TITLE_COLUMNS, "genres": GENRE_COLUMNS}
"""Columns of the item table that a mapping may name as well."""


def check_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Return the mapping as a dictionary, its keys known.

    Raises:
        UsageError: A key that is no role of a column, or one column in two roles.
    """
    columns = dict(columns or {})
    known = (*ALIASES, *OTHERS)
    unknown = [key for key in columns if key not in known]
    if unknown:
        raise UsageError(
            "columns were named",
            f"{unknown[0]} is no role that a column can have",
            f"The roles are {', '.join(known)}, as in data.columns.user=uid",
        )
    return columns


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "")


def find_column(names: list[str], role: str, columns: Mapping[str, str], label: str) -> str:
    """The column of a role: the one named by the caller, or the one of a known name.

    Raises:
        UsageError: The column named does not exist.
        DataError: None has a known name, or several have.
    """
    if role in columns:
        if columns[role] not in names:
            raise UsageError(
                f"the column {columns[role]!r} of {label} was named for `{role}`",
                f"there is none; there is {listed(names)}",
                "Correct the mapping",
            )
        return columns[role]
    for alias in ALIASES[role]:
        found = [name for name in names if _plain(name) == _plain(alias)]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(
                f"{label} was to be read",
                f"the columns {listed(found)} could each be the `{role}`",
                f"Name the one you mean: data.columns.{role}=NAME",
            )
    raise DataError(
        f"{label} was to be read",
        f"no column is known to be the `{role}`; there is {listed(names)}",
        f"Name the one that is: data.columns.{role}=NAME",
    )


def has_roles(names: list[str], columns: Mapping[str, str]) -> bool:
    """Whether user, item and time would all be found."""
    for role, aliases in ALIASES.items():
        known = {_plain(alias) for alias in aliases} | {_plain(columns.get(role, ""))}
        if not any(_plain(name) in known for name in names):
            return False
    return True


@dataclass(frozen=True)
class Place:
    """What to call a table in messages, and the line of its first row."""

    label: str
    first: int = 2


def as_ids(values: pl.Series, place: Place) -> pl.Series:
    """Ids as text; whole numbers lose their decimals, as null among integers gives them some.

    Raises:
        DataError: A row without id, or a column that holds no ids.
    """
    if values.dtype.is_float():
        whole = values.drop_nulls()
        if not ((whole.is_finite()) & (whole.abs() < 2.0**53) & (whole == whole.floor())).all():
            raise _no_ids(values, place, "numbers that are not whole")
        values = values.cast(pl.Int64)
    elif values.dtype == pl.Categorical or isinstance(values.dtype, pl.Enum):
        values = values.cast(pl.String)
    elif not (values.dtype.is_integer() or values.dtype == pl.String):
        raise _no_ids(values, place, f"values of type {values.dtype}")
    text = values.cast(pl.String)
    refuse_blank(text, place.label, place.first)
    return text


def _no_ids(values: pl.Series, place: Place, found: str) -> DataError:
    return DataError(
        f"{place.label} was to be read",
        f"`{values.name}` holds {found}",
        "Ids are text or whole numbers: name another column, or write them as text",
    )


def as_times(values: pl.Series, place: Place) -> pl.Series:
    """Times as numbers: numbers as they are; dates, also ISO 8601 as text, as seconds since 1970.

    Raises:
        DataError: A row without time, or a value that is neither a finite number nor a date.
    """
    if values.dtype == pl.Categorical or isinstance(values.dtype, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        text = values.str.strip_chars()
        dates = None
        if text.cast(pl.Float64, strict=False).null_count() == text.len():
            dates = _dates(text)
        values = numbers(text, *_of(place)) if dates is None else dates
    if values.dtype in (pl.Datetime, pl.Date):
        values = values.cast(pl.Datetime("us")).cast(pl.Int64) / 1e6
    if not values.dtype.is_numeric():
        raise DataError(
            f"{place.label} was to be read",
            f"`{values.name}` holds values of type {values.dtype}",
            "Times are numbers or dates: name another column",
        )
    values = values.cast(pl.Float64)
    refuse_missing(values, *_of(place))
    finite = values.is_finite()
    if not finite.all():
        row = int((~finite).arg_max() or 0)
        raise DataError(
            f"{place.label} was to be read",
            f"line {row + place.first} has {values[row]} for a time",
            "Give a finite number",
        )
    return values


def _dates(text: pl.Series) -> pl.Series | None:
    """Dates in UTC where every text is one or empty; their forms may differ from row to row."""
    dates = text.str.to_datetime(strict=False, time_unit="us", time_zone="UTC")
    if dates.null_count() == (text == "").sum() + text.null_count():
        return dates
    try:
        each = [datetime.fromisoformat(value) if value else None for value in text.to_list()]
        aware = [d and (d if d.tzinfo else d.replace(tzinfo=UTC)).astimezone(UTC) for d in each]
    except (ValueError, OverflowError):
        return None
    return pl.Series(text.name, aware, dtype=pl.Datetime("us", "UTC"))


def _of(place: Place) -> tuple[str, int]:
    return place.label, place.first


def as_events(frame: pl.DataFrame, columns: Mapping[str, str], place: Place) -> pl.DataFrame:
    """The columns `user_id`, `item_id` and `time` of a table of interactions."""
    found = {role: find_column(frame.columns, role, columns, place.label) for role in KEYS}
    if len(set(found.values())) < len(found):
        raise UsageError(
            f"{place.label} was to be read",
            f"one column stands for two roles ({found})",
            "Name a column of its own for each: data.columns.user=NAME",
        )
    return pl.DataFrame(
        [
            as_ids(frame[found["user"]], place).alias("user_id"),
            as_ids(frame[found["item"]], place).alias("item_id"),
            as_times(frame[found["time"]], place).alias("time"),
        ]
    )


def as_side(
    frame: pl.DataFrame, role: str, columns: Mapping[str, str], place: Place
) -> pl.DataFrame:
    """A side table with its id first and every other column as text or lists of text.

    Text throughout, so that the same table read from CSV and from Parquet gives the same groups.
    """
    mapped = columns.get(role)
    if mapped not in frame.columns and "id" in frame.columns:
        try:
            key = find_column(frame.columns, role, {}, place.label)
        except DataError:
            key = "id"
    else:
        key = find_column(frame.columns, role, {role: mapped} if mapped else {}, place.label)
    side = [as_ids(frame[key], place).alias(KEYS[role])]
    names = {columns[o]: o for o in OTHERS if role == "item" and o in columns}
    for name, other in names.items():
        if name not in frame.columns:
            find_column(frame.columns, other, columns, place.label)
    for name in frame.columns:
        if name != key:
            side.append(_as_text(frame[name]).alias(names.get(name, name)))
    held = [column.name for column in side]
    twice = sorted({name for name in held if held.count(name) > 1})
    if twice:
        raise DataError(
            f"{place.label} was to be read",
            f"two columns would be called {listed(twice)}",
            "Rename one of them",
        )
    return pl.DataFrame(side)


def _as_text(values: pl.Series) -> pl.Series:
    """A column as text, or as lists of text; nothing known is "" and []."""
    if isinstance(values.dtype, pl.List | pl.Array):
        lists = [
            [str(v) for v in row if v is not None] if row is not None else []
            for row in values.to_list()
        ]
        return pl.Series(values.name, lists, dtype=pl.List(pl.String))
    if isinstance(values.dtype, pl.Struct) or values.dtype in (pl.Binary, pl.Object):
        texts = ["" if v is None else str(v) for v in values.to_list()]
        return pl.Series(values.name, texts, dtype=pl.String)
    if values.dtype.is_float():
        whole = values.drop_nulls()
        if (whole.is_finite() & (whole.abs() < 2.0**53) & (whole == whole.floor())).all():
            values = values.cast(pl.Int64)
    return values.cast(pl.String).fill_null("")
