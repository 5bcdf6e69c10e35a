"""Which column is what: names that data sets use, and the caller's own mapping over them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import polars as pl

from fudlr.common.errors import UsageError
from fudlr.data.build import GENRE_COLUMNS, TITLE_COLUMNS, Tables, build_interactions
from fudlr.data.interactions import Interactions
from fudlr.data.text import Table, listed, shown, unread, warn

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
WHOLE = r"^[+-]?\d+(\.0*)?$"
ROW = "row"
"""In place of a time column: rows stand in the order of time."""
DATES = (
    *(
        "%Y-%m-%d",
        "%Y/%m/%d %H:%M:%S",
        "%Y/%m/%d",
        "%m %d, %Y",
        "%b %d, %Y",
        "%B %d, %Y",
        "%d %b %Y",
    ),
    *("%d-%b-%Y", "%a %b %d %H:%M:%S %z %Y", "%d.%m.%Y %H:%M:%S", "%d.%m.%Y"),
    *("%m/%d/%Y", "%d/%m/%Y", "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S"),
    *("%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M"),
    *("%m/%d/%y", "%d/%m/%y", "%d.%m.%y", "%m/%d/%y %H:%M", "%d/%m/%y %H:%M"),
    "%a, %d %b %Y %H:%M:%S",
)
"""Dates that are understood beside ISO 8601, where all rows have one form."""
YEARS = (10**8, 5 * 10**9)
"""Seconds since 1970 that data were made at: 1973 to 2128."""
UNITS = (1, 10**3, 10**6, 10**9)
"""Of times since 1970, in a second."""


def check_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Return the mapping as a dictionary, its keys known."""
    columns, known = dict(columns or {}), (*ALIASES, *OTHERS)
    if unknown := [key for key in columns if key not in known]:
        raise UsageError(
            "columns were named",
            f"{unknown[0]} is no role that a column can have",
            f"The roles are {', '.join(known)}, as in data.columns.user=uid",
        )
    return columns


def _plain(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "_- "))


def find_column(names: list[str], role: str, columns: Mapping[str, str], label: str) -> str:
    """The column of a role: the one named by the caller, or the one of a known name."""
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
            each = f"the columns {listed(found)} could each be the `{role}`"
            raise unread(label, each, f"Name the one you mean: data.columns.{role}=NAME")
    order = "; where the rows stand in the order of time, data.columns.time=row"
    raise unread(
        label,
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


def _whole(values: pl.Series) -> pl.Series:
    """Floats as integers where all are whole, also where text or decimals hold them: null among
    integers makes them floats."""
    known = values.drop_nulls()
    if values.dtype.is_float() and (known.is_finite() & (known.abs() < 2.0**53)).all():
        return values.cast(pl.Int64) if (known == known.floor()).all() else values
    if values.dtype == pl.String or values.dtype.is_decimal():
        text = known.cast(pl.String).str.strip_chars()
        text = text.filter(text != "")
        # The first value tells most columns apart, without a look at the others.
        if text.head(1).str.contains(WHOLE).any() and text.str.contains(WHOLE).all():
            return values.cast(pl.String).str.strip_chars().str.replace(r"\.0*$", "")
    return values


def as_ids(values: pl.Series, table: Table) -> pl.Series:
    """Ids as text in Unicode's composed form (NFC); whole numbers lose their decimals."""
    values = _whole(values)
    texts = values.dtype in (pl.String, pl.Categorical) or isinstance(values.dtype, pl.Enum)
    if not (texts or values.dtype.is_integer()):
        kind = f"values of type {values.dtype}"
        if values.dtype.is_float() or values.dtype.is_decimal():
            kind = "numbers that are not whole, or too large to be exact"
        remedy = "Ids are text or whole numbers: name another column, or write them as text"
        raise unread(table.label, f"`{values.name}` holds {kind}", remedy)
    text = values.cast(pl.String).str.strip_chars()
    table.refuse(text.fill_null("") == "", f"an empty `{text.name}`", "Every row needs its id")
    return text if values.dtype.is_integer() else text.str.normalize("NFC")


def as_times(values: pl.Series, table: Table) -> pl.Series:
    """Times as Int64 or Float64: numbers as they are, in their unit; dates as seconds since 1970.

    Dates that nanoseconds alone tell apart are nanoseconds since 1970.
    """
    if values.dtype == pl.Categorical or isinstance(values.dtype, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        text = values.str.strip_chars()
        known = text.filter(text != "")
        dates = known.len() and known.cast(pl.Float64, strict=False).null_count() == known.len()
        values = _dates(text, table) if dates else table.numbers(text)
    if isinstance(values.dtype, pl.Datetime) or values.dtype == pl.Date:
        values = _since_1970(values)
    if not values.dtype.is_numeric():
        found = f"`{values.name}` holds values of type {values.dtype}"
        raise unread(table.label, found, "Times are numbers or dates: name another column")
    remedy = "Without times there is no order to learn from: give one for every row"
    table.refuse(values.is_null(), f"no {values.name}", remedy)
    given = values
    values = values.cast(pl.Int64 if values.dtype.is_integer() else pl.Float64, strict=False)
    bad = values.is_null() | ~values.is_finite()
    table.refuse(bad, "for a time", "Give a finite number below 2^63", given)
    _check_unit(values, table)
    return values


def _check_unit(values: pl.Series, table: Table) -> None:
    """Refuse times since 1970 in several units; say where some are 0, as if not known."""
    units = [values.is_between(YEARS[0] * unit, YEARS[1] * unit) for unit in UNITS]
    found = [unit for unit in units if unit.any()]
    if len(found) > 1:
        rarest = min(found, key=lambda unit: int(unit.sum()))
        remedy = "Write all times in one unit"
        table.refuse(rarest, "for a time, of another unit than other rows'", remedy, values)
    unknown = int((values <= 0).sum())
    if unknown and int(found[0].sum() if found else 0) == values.len() - unknown:
        warn(f"{table.label}: {unknown} times are 0 or less, as if not known: they count as oldest")


def _since_1970(values: pl.Series) -> pl.Series:
    if isinstance(values.dtype, pl.Datetime) and values.dtype.time_unit == "ns":
        exact = values.cast(pl.Int64)
        if (exact % 1000 != 0).any():
            return exact
    micro = values.cast(pl.Datetime("us")).cast(pl.Int64)
    return micro / 1e6 if (micro % 10**6 != 0).any() else micro // 10**6


def _dates(text: pl.Series, table: Table) -> pl.Series:
    """Dates in UTC; in ISO 8601 their forms may differ from row to row."""
    text = text.replace("", None).str.replace(r" ?(?:UTC|GMT)$", "")
    if text.drop_nulls().str.contains(r"^\d{4}-\d\d?-\d\d?").all():
        dates = text.str.to_datetime(strict=False, time_unit="us", time_zone="UTC")
        if dates.null_count() == text.null_count():
            return dates
    try:
        each = [datetime.fromisoformat(value) if value else None for value in text.to_list()]
        aware = [d and (d if d.tzinfo else d.replace(tzinfo=UTC)).astimezone(UTC) for d in each]
        return pl.Series(text.name, aware, dtype=pl.Datetime("us", "UTC"))
    except (ValueError, OverflowError):
        pass
    tried = []
    for form in DATES:
        zone = {"time_zone": "UTC"} if "%z" in form else {}
        kind = pl.Datetime("us", **zone) if "%H" in form or "%I" in form else pl.Date
        try:
            read = text.str.strptime(kind, form, strict=False).cast(pl.Datetime("us"))
        except pl.exceptions.PolarsError:
            continue
        # %Y takes 20 for the year 20.
        tried.append(read.set((read.dt.year() < 1000).fill_null(False), None))
    best = min(tried, key=lambda read: read.null_count())
    table.refuse(
        best.is_null() & text.is_not_null(),
        "for a time, which is neither a number nor a date of a known form",
        "Write dates in ISO 8601, 2018-01-31T12:00:00, all in one form",
        text,
    )
    if any(d.null_count() == best.null_count() and not d.equals(best) for d in tried):
        found = f"`{text.name}` holds dates such as {shown(text[0])}"
        remedy = "Write dates in ISO 8601, 2018-01-31"
        raise unread(table.label, f"{found}, of which day and month cannot be told apart", remedy)
    return best


def _events(table: Table, columns: Mapping[str, str]) -> pl.DataFrame:
    """The columns `user_id`, `item_id` and `time` of a table of interactions."""
    frame = table.frame
    by_row = columns.get("time") == ROW and ROW not in frame.columns
    wanted = [role for role in KEYS if role != "time" or not by_row]
    found = {role: find_column(frame.columns, role, columns, table.label) for role in wanted}
    if len(set(found.values())) < len(found):
        raise UsageError(
            f"{table.label} was to be read",
            f"one column stands for two roles ({found})",
            "Name a column of its own for each: data.columns.user=NAME",
        )
    times = pl.Series(range(frame.height), dtype=pl.Int64)
    return pl.DataFrame(
        {
            "user_id": as_ids(frame[found["user"]], table),
            "item_id": as_ids(frame[found["item"]], table),
            "time": times if by_row else as_times(frame[found["time"]], table),
        }
    )


def _side(table: Table, role: str, columns: Mapping[str, str]) -> pl.DataFrame:
    """A side table with its id first and every other column as text or lists of text.

    Text throughout, so that the same table read from CSV and from Parquet gives the same groups.
    """
    frame, label, key = table.frame, table.label, "id"
    mapped = {role: columns[role]} if columns.get(role) in frame.columns else {}
    if mapped or key not in frame.columns or role in roles(frame.columns, {}):
        key = find_column(frame.columns, role, mapped, label)
    side = [as_ids(frame[key], table).alias(KEYS[role])]
    named = {find_column(frame.columns, other, columns, label): other
             for other in OTHERS if role == "item" and other in columns}  # fmt: skip
    nested = [n for n in frame.columns if n != key and _is_nested(frame.schema[n])]
    if nested:
        warn(f"{label}: columns of nested values are left out: {listed(nested)}", "nested")
    kept = [n for n in frame.columns if n != key and n not in nested]
    side += [_as_text(frame[n]).alias(named.get(n, n)) for n in kept]
    held = [column.name for column in side]
    if twice := sorted({name for name in held if held.count(name) > 1}):
        raise unread(label, f"two columns would be called {listed(twice)}", "Rename one of them")
    return pl.DataFrame(side)


def _is_nested(kind: pl.DataType) -> bool:
    """Whether a column's values are neither text nor lists of texts, nor records with a name."""
    within = getattr(kind, "inner", None)
    if isinstance(within, pl.Struct):
        return "name" not in {field.name for field in within.fields}
    return isinstance(kind, pl.Struct) or isinstance(within, pl.List | pl.Array)


def _as_text(values: pl.Series) -> pl.Series:
    """A column as text, or as lists of text; nothing known is "" and []."""
    if isinstance(values.dtype, pl.List | pl.Array):
        if isinstance(values.dtype.inner, pl.Struct):
            values = values.list.eval(pl.element().struct.field("name"))
        lists = [[str(v) for v in row or () if v is not None] for row in values.to_list()]
        return pl.Series(values.name, lists, dtype=pl.List(pl.String))
    if values.dtype in (pl.Binary, pl.Object):
        texts = ["" if v is None else str(v) for v in values.to_list()]
        return pl.Series(values.name, texts, dtype=pl.String)
    return _whole(values).cast(pl.String).fill_null("")


def assemble(tables: Tables, columns: Mapping[str, str]) -> Interactions:
    """Tables as a form's reader gives them, by their columns' roles, as interactions."""
    users, items = tables.users, tables.items
    return build_interactions(
        _events(tables.events, columns),
        _side(users, "user", columns) if users else None,
        _side(items, "item", columns) if items else None,
        tables.source,
    )
