"""Which column is what: names that data sets use, and the caller's own mapping over them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import polars as pl

from fudlr.common.errors import DataError, UsageError
from fudlr.data.build import (
    GENRE_COLUMNS,
    TITLE_COLUMNS,
    Table,
    Tables,
    build_interactions,
)
from fudlr.data.interactions import Interactions
from fudlr.data.text import listed, numbers, refuse_blank, refuse_missing, shown

ALIASES = {
    "user": (
        *("user_id", "user", "uid", "reviewer_id", "customer_id", "member_id", "visitor_id"),
        "account_id",
    ),
    "item": (
        *("item_id", "item", "iid", "movie_id", "book_id", "product_id", "parent_asin", "asin"),
        *("business_id", "video_id", "artist_id", "track_id", "song_id", "news_id", "venue_id"),
        *("location_id", "game_id", "app_id", "anime_id", "recipe_id", "article_id", "isbn"),
    ),
    "time": (
        *("timestamp", "time", "ts", "datetime", "date", "unix_review_time", "created_at"),
        "event_time",
    ),
}
"""Names that are understood without a mapping; capitals, spaces, `_` and `-` do not matter."""
KEYS = {"user": "user_id", "item": "item_id", "time": "time"}
OTHERS = {"title": TITLE_COLUMNS, "genres": GENRE_COLUMNS}
"""Columns of the item table that a mapping may name as well."""
ROW = "row"
"""In place of a time column: rows stand in the order of time."""
DATES = (
    *("%Y/%m/%d %H:%M:%S", "%Y/%m/%d", "%m %d, %Y", "%b %d, %Y", "%B %d, %Y", "%d %b %Y"),
    *("%d-%b-%Y", "%a %b %d %H:%M:%S %z %Y", "%d.%m.%Y %H:%M:%S", "%d.%m.%Y"),
    *("%m/%d/%Y", "%d/%m/%Y", "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S"),
    *("%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M"),
)
"""Dates that are understood beside ISO 8601, where all rows have one form."""


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
    return name.lower().translate(str.maketrans("", "", "_- "))


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
    order = "; where the rows stand in the order of time, data.columns.time=row"
    raise DataError(
        f"{label} was to be read",
        f"no column is known to be the `{role}`; there is {listed(names)}",
        f"Name the one that is: data.columns.{role}=NAME" + (order if role == "time" else ""),
    )


def roles(names: list[str], columns: Mapping[str, str]) -> set[str]:
    """Those of user, item and time that would be found among the columns."""
    plain = {_plain(name) for name in names}
    return {
        role
        for role, aliases in ALIASES.items()
        if plain & ({_plain(alias) for alias in aliases} | {_plain(columns.get(role, ""))})
        or (role == "time" and columns.get(role) == ROW)
    }


def as_ids(values: pl.Series, label: str, first: int) -> pl.Series:
    """Ids as text; whole numbers lose their decimals, as null among integers gives them some.

    Raises:
        DataError: A row without id, or a column that holds no ids.
    """
    if values.dtype.is_float():
        whole = values.drop_nulls()
        if not ((whole.is_finite()) & (whole.abs() < 2.0**53) & (whole == whole.floor())).all():
            raise _no_ids(values, label, "numbers that are not whole")
        values = values.cast(pl.Int64)
    elif not (
        values.dtype.is_integer()
        or values.dtype in (pl.String, pl.Categorical)
        or isinstance(values.dtype, pl.Enum)
    ):
        raise _no_ids(values, label, f"values of type {values.dtype}")
    text = values.cast(pl.String).str.strip_chars()
    refuse_blank(text, label, first)
    return text


def _no_ids(values: pl.Series, label: str, found: str) -> DataError:
    return DataError(
        f"{label} was to be read",
        f"`{values.name}` holds {found}",
        "Ids are text or whole numbers: name another column, or write them as text",
    )


def as_times(values: pl.Series, label: str, first: int) -> pl.Series:
    """Times as Int64 or Float64: numbers as they are, in their unit; dates as seconds since 1970.

    Dates that nanoseconds alone tell apart are nanoseconds since 1970.

    Raises:
        DataError: A row without time, or a value that is neither a finite number nor a date.
    """
    if values.dtype == pl.Categorical or isinstance(values.dtype, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        text = values.str.strip_chars()
        known = text.filter(text != "")
        if known.len() and known.cast(pl.Float64, strict=False).null_count() == known.len():
            values = _dates(text, label, first)
        else:
            values = numbers(text, label, first)
    if isinstance(values.dtype, pl.Datetime) or values.dtype == pl.Date:
        values = _since_1970(values)
    if not values.dtype.is_numeric():
        raise DataError(
            f"{label} was to be read",
            f"`{values.name}` holds values of type {values.dtype}",
            "Times are numbers or dates: name another column",
        )
    values = values.cast(pl.Int64 if values.dtype.is_integer() else pl.Float64)
    refuse_missing(values, label, first)
    finite = values.is_finite()
    if not finite.all():
        row = int((~finite).arg_max() or 0)
        raise DataError(
            f"{label} was to be read",
            f"line {row + first} has {values[row]} for a time",
            "Give a finite number",
        )
    return values


def _since_1970(values: pl.Series) -> pl.Series:
    if isinstance(values.dtype, pl.Datetime) and values.dtype.time_unit == "ns":
        exact = values.cast(pl.Int64)
        if (exact % 1000 != 0).any():
            return exact
    micro = values.cast(pl.Datetime("us")).cast(pl.Int64)
    return micro / 1e6 if (micro % 10**6 != 0).any() else micro // 10**6


def _dates(text: pl.Series, label: str, first: int) -> pl.Series:
    """Dates in UTC; in ISO 8601 their forms may differ from row to row.

    Raises:
        DataError: A text that is no date, or dates of which day and month cannot be told apart.
    """
    blank = (text == "").sum() + text.null_count()
    if text.filter(text != "").str.contains(r"^\d{4}-\d\d?-\d\d?").all():
        dates = text.str.to_datetime(strict=False, time_unit="us", time_zone="UTC")
        if dates.null_count() == blank:
            return dates
    try:
        each = [datetime.fromisoformat(value) if value else None for value in text.to_list()]
        aware = [d and (d if d.tzinfo else d.replace(tzinfo=UTC)).astimezone(UTC) for d in each]
        return pl.Series(text.name, aware, dtype=pl.Datetime("us", "UTC"))
    except (ValueError, OverflowError):
        pass
    fitting: dict[str, pl.Series] = {}
    for form in DATES:
        zone = {"time_zone": "UTC"} if "%z" in form else {}
        has_time = "%H" in form or "%I" in form
        kind = pl.Datetime("us", **zone) if has_time else pl.Date
        try:
            read = text.str.strptime(kind, form, strict=False)
        except pl.exceptions.PolarsError:
            continue
        if read.null_count() == blank:
            fitting[form] = read.cast(pl.Datetime("us"))
    asked = f"{label} was to be read"
    if not fitting:
        tried = [
            text.str.strptime(pl.Date, form, strict=False, exact=False) for form in DATES[1:12]
        ]
        best = min(tried, key=lambda read: read.null_count())
        row = int((best.is_null() & (text != "")).arg_max() or 0)
        raise DataError(
            asked,
            f"line {row + first} has {shown(text[row])} for a time, which is neither a number nor "
            "a date of a known form",
            "Write dates in ISO 8601, 2018-01-31T12:00:00, all in one form",
        )
    first_form, *others = fitting
    if any(not fitting[form].equals(fitting[first_form]) for form in others):
        raise DataError(
            asked,
            f"`{text.name}` holds dates such as {shown(text[0])}, of which day and month cannot be "
            "told apart",
            "Write dates in ISO 8601, 2018-01-31",
        )
    return fitting[first_form]


def as_events(table: Table, columns: Mapping[str, str]) -> pl.DataFrame:
    """The columns `user_id`, `item_id` and `time` of a table of interactions."""
    frame, label, first = table.frame, table.label, table.first
    by_row = columns.get("time") == ROW and ROW not in frame.columns
    wanted = [role for role in KEYS if role != "time" or not by_row]
    found = {role: find_column(frame.columns, role, columns, label) for role in wanted}
    if len(set(found.values())) < len(found):
        raise UsageError(
            f"{label} was to be read",
            f"one column stands for two roles ({found})",
            "Name a column of its own for each: data.columns.user=NAME",
        )
    times = pl.Series("time", range(frame.height), dtype=pl.Int64)
    if not by_row:
        times = as_times(frame[found["time"]], label, first)
    return pl.DataFrame(
        [
            as_ids(frame[found["user"]], label, first).alias("user_id"),
            as_ids(frame[found["item"]], label, first).alias("item_id"),
            times.alias("time"),
        ]
    )


def as_side(table: Table, role: str, columns: Mapping[str, str]) -> pl.DataFrame:
    """A side table with its id first and every other column as text or lists of text.

    Text throughout, so that the same table read from CSV and from Parquet gives the same groups.
    """
    frame, label = table.frame, table.label
    mapped = columns.get(role)
    if mapped not in frame.columns and "id" in frame.columns:
        try:
            key = find_column(frame.columns, role, {}, label)
        except DataError:
            key = "id"
    else:
        key = find_column(frame.columns, role, {role: mapped} if mapped else {}, label)
    side = [as_ids(frame[key], label, table.first).alias(KEYS[role])]
    names = {columns[o]: o for o in OTHERS if role == "item" and o in columns}
    for name, other in names.items():
        if name not in frame.columns:
            find_column(frame.columns, other, columns, label)
    for name in frame.columns:
        if name != key:
            side.append(_as_text(frame[name]).alias(names.get(name, name)))
    held = [column.name for column in side]
    twice = sorted({name for name in held if held.count(name) > 1})
    if twice:
        raise DataError(
            f"{label} was to be read",
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


def assemble(tables: Tables, columns: Mapping[str, str]) -> Interactions:
    """Tables as a form's reader gives them, by their columns' roles, as interactions."""
    users, items = tables.users, tables.items
    return build_interactions(
        as_events(tables.events, columns),
        as_side(users, "user", columns) if users else None,
        as_side(items, "item", columns) if items else None,
        tables.source,
    )
