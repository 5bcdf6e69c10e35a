"""From tables with ids, as every source has them, to `Interactions`; all readers end here."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.interactions import DataWarning, Interactions, Ints
from fudlr.data.text import listed

TITLE_COLUMNS = ("title", "movie_title", "book_title", "item_name", "name")
GENRE_COLUMNS = ("genres", "genre", "class", "categories", "category")
YEAR_COLUMNS = ("year", "release_year", "publication_year")

LISTED = r"""^\s*\[?\s*(?:'[^']*'|"[^"]*")(?:\s*,\s*(?:'[^']*'|"[^"]*"))*\s*\]?\s*$"""
"""A list as Python or JSON prints it, with brackets or without: 'Books', 'Literature & Fiction'."""


@dataclass(frozen=True)
class Table:
    """Columns as they were read, what to call them in messages, and the line of the first row."""

    frame: pl.DataFrame
    label: str
    first: int = 2


@dataclass(frozen=True)
class Tables:
    """What a reader of a form finds: the interactions, and tables of users and items."""

    source: str
    events: Table
    users: Table | None = None
    items: Table | None = None


def examples(values: pl.Series, most: int = 3) -> str:
    """Name a few values, for a message."""
    return listed(values.head(most + 1).to_list(), most)


@dataclass(frozen=True)
class _Side:
    """One side of the interactions: users or items."""

    key: str
    source: str

    def table(self, ids: pl.Series, given: pl.DataFrame | None) -> pl.DataFrame:
        """Return the side table with one row an id, made from the ids alone where none is given."""
        if given is None:
            return _in_order(ids.unique().alias(self.key).to_frame(), self.key)
        table = given.unique(maintain_order=True)
        if table.height < given.height:
            warnings.warn(
                f"{self.source}: {given.height - table.height} repeated rows of the {self.key} "
                "table were read once",
                DataWarning,
                stacklevel=4,
            )
        twice = table.filter(pl.col(self.key).is_duplicated())[self.key].unique(maintain_order=True)
        if twice.len():
            raise DataError(
                f"{self.source} was to be read",
                f"the {self.key} table describes {twice.len()} ids more than once and differently "
                f"({examples(twice)})",
                "Keep one row an id",
            )
        return _in_order(table.select(self.key, pl.exclude(self.key)), self.key)

    def index(self, ids: pl.Series, table: pl.DataFrame) -> Ints:
        """Return the row of `table` that each id names."""
        rows = table.select(self.key).with_row_index("row")
        found = (
            ids.alias(self.key)
            .to_frame()
            .join(rows, on=self.key, how="left", maintain_order="left")["row"]
        )
        if found.null_count():
            lost = ids.filter(found.is_null()).unique(maintain_order=True)
            share = "none" if found.null_count() == found.len() else "not all"
            raise DataError(
                f"{self.source} was to be read",
                f"{share} of the interactions' {self.key} values are in the {self.key} table: "
                f"{lost.len()} are missing ({examples(lost)})",
                "Check that both files belong to one data set, or leave the side table out",
            )
        return found.cast(pl.Int64).to_numpy().copy()


def _in_order(table: pl.DataFrame, key: str) -> pl.DataFrame:
    """Sort by id, the number at its end by value: 2 before 10, and u2 before u10.

    So nothing hangs on the order of a file's rows: no draw, no tie, no embedding of an item.
    """
    number = pl.col(key).str.extract(r"(\d{1,18})$")
    text = pl.col(key).str.replace(r"\d{1,18}$", "")
    return table.sort(text, number.cast(pl.Int64), key, nulls_last=False)


def _first_of_each_pair(user: Ints, item: Ints, order: Ints, source: str) -> Ints:
    """Drop later interactions of a user with an item: seen items are never recommended again."""
    pair = user[order] * (item.max() + 1) + item[order]
    _, first = np.unique(pair, return_index=True)
    if first.size < order.size:
        warnings.warn(
            DataWarning(
                f"{source}: {order.size - first.size} repeated interactions of a user with the "
                "same item were dropped; the first is kept",
                kind="repeats",
                count=order.size - first.size,
            ),
            stacklevel=3,
        )
    return order[np.sort(first)]


def build_interactions(
    events: pl.DataFrame,
    users: pl.DataFrame | None,
    items: pl.DataFrame | None,
    source: str,
) -> Interactions:
    """Join events with their side tables, index them, sort them, and drop repeats.

    Args:
        events: columns `user_id`, `item_id` (str) and `time` (number), in the order of the source.
        users: one row a user, with a column `user_id`; users without events are left out. None
            makes a table of the ids alone.
        items: one row an item, with a column `item_id`; items without events stay in the catalogue.
        source: what to call the data in messages.

    Users and items stand in the order of their ids, and a user's interactions at the same time in
    that of their items, so that nothing hangs on the order of a file's rows.

    Raises:
        DataError: no events, ids without a row, ids with two different rows, times out of range.
    """
    if events.is_empty():
        raise DataError(f"{source} was to be read", "it has no interactions", "Check the file")
    user_side, item_side = _Side("user_id", source), _Side("item_id", source)
    users = user_side.table(events["user_id"], users)
    items = _with_titles(item_side.table(events["item_id"], items))
    user = user_side.index(events["user_id"], users)
    item = item_side.index(events["item_id"], items)
    time = events["time"].to_numpy()
    if not (np.abs(time.astype(np.float64)) < 2.0**62).all():
        raise DataError(f"{source} was to be read", "a time is out of range", "Give finite times")

    active = np.unique(user)
    if active.size < users.height:
        _say_idle(source, "users", users.height - active.size, "are left out")
        users = users[active]
        user = np.searchsorted(active, user).astype(np.int64)
    idle = items.height - np.unique(item).size
    if idle:
        _say_idle(source, "items", idle, "stay in the catalogue with popularity 0")

    order = np.lexsort((item, time, user))
    order = _first_of_each_pair(user, item, order, source)
    whole = (time if time.dtype == np.int64 else np.floor(time)).astype(np.int64)[order]
    return Interactions(user[order], item[order], whole, users, items)


def _say_idle(source: str, what: str, count: int, fate: str) -> None:
    message = f"{source}: {count} {what} without interactions {fate}"
    warnings.warn(message, DataWarning, stacklevel=3)


def _rename_first(items: pl.DataFrame, candidates: tuple[str, ...], name: str) -> pl.DataFrame:
    found = next((column for column in candidates if column in items.columns), None)
    return items if found in (None, name) else items.rename({str(found): name})


def _with_titles(items: pl.DataFrame) -> pl.DataFrame:
    """Give the item table `title`, distinct for every item, and `genres` where it has them.

    Films of one name are told apart by the year; what is then still the same, by the item's id,
    because a title that names two items could be grounded in neither. Genres written as one text
    are split: at `|`, `;` or `,`, the first of these that the column holds, or where quotes are.
    """
    items = _rename_first(items, TITLE_COLUMNS, "title")
    items = _rename_first(items, GENRE_COLUMNS, "genres")
    items = _rename_first(items, YEAR_COLUMNS, "year")
    if "genres" in items.columns:
        items = items.with_columns(split_texts(items["genres"]))
    if items.schema.get("title") == pl.List(pl.String):
        items = items.with_columns(pl.col("title").list.join(" "))
    if "title" not in items.columns:
        items = items.with_columns(title=pl.col("item_id"))
    title = pl.col("title").cast(pl.String).fill_null("")
    title = pl.when(title == "").then(pl.col("item_id")).otherwise(title)
    if "year" in items.columns:
        year = pl.col("year").cast(pl.String).str.extract(r"^(\d{4})(?:\.0)?$")
        title = pl.when(year.is_null()).then(title).otherwise(title + " (" + year + ")")
        items = items.with_columns(title=title, year=year.cast(pl.Int64))
    else:
        items = items.with_columns(title=title)
    twin = pl.col("title").is_duplicated()
    labelled = pl.col("title") + " [" + pl.col("item_id") + "]"
    items = items.with_columns(title=pl.when(twin).then(labelled).otherwise(pl.col("title")))
    rest = [name for name in items.columns if name not in ("item_id", "title")]
    return items.select("item_id", "title", *rest)


def split_texts(values: pl.Series, marks: str = "|;,") -> pl.Series:
    """Texts that hold several values as lists of them, split at quotes or at one of `marks`."""
    if values.dtype != pl.String:
        return values
    text = values.fill_null("")
    quoted = text.str.contains(LISTED)
    mark = next((m for m in marks if text.filter(~quoted).str.contains(m, literal=True).any()), "|")
    inside = text.str.extract_all(r"""'[^']*'|"[^"]*\"""").list.eval(
        pl.element().str.slice(1, pl.element().str.len_chars() - 2)
    )
    frame = pl.DataFrame({"q": quoted, "in": inside, "out": text.str.split(mark)})
    parts = frame.select(
        pl.when("q").then("in").otherwise("out").list.eval(pl.element().str.strip_chars())
    ).to_series()
    return parts.list.eval(pl.element().filter(pl.element() != "")).alias(values.name)
