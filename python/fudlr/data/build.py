"""From tables with ids, as every source has them, to `Interactions`; all readers end here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from fudlr.data.interactions import Interactions, Ints
from fudlr.data.text import Table, listed, unread, warn

TITLE_COLUMNS = ("title", "movie_title", "book_title", "item_name", "name")
GENRE_COLUMNS = ("genres", "genre", "class", "categories", "category")
YEAR_COLUMNS = ("year", "release_year", "publication_year")

QUOTED = r"""'[^']*'|"[^"]*\""""
LISTED = rf"^(?:{QUOTED})(?:\s*,\s*(?:{QUOTED}))*$"
"""A list as Python or JSON prints it, without its brackets: 'Books', 'Literature & Fiction'."""
BRACKETS = r"^(?s:[\[{]\s*(.*?)\s*[\]}])$"
NAMED = rf"""['"]name['"]\s*:\s*(?:{QUOTED})"""
"""Of a record within a list, as in TMDB's [{'id': 28, 'name': 'Action'}]."""
MARKS = ("|", ";", ",", " / ", "\t")


@dataclass(frozen=True)
class Tables:
    """What a reader of a form finds: the interactions, and tables of users and items."""

    source: str
    events: Table
    users: Table | None = None
    items: Table | None = None


def _indexed(ids: pl.Series, given: pl.DataFrame | None, source: str) -> tuple[pl.DataFrame, Ints]:
    """The side table, one row an id and in the order of ids, and the row that each of `ids` names.

    Made from the ids alone where none is given.
    """
    key = ids.name
    given = ids.unique().to_frame() if given is None else given
    table = given.unique(maintain_order=True)
    if table.height < given.height:
        repeated = given.height - table.height
        warn(f"{source}: {repeated} repeated rows of the {key} table were read once")
    twice = table.filter(pl.col(key).is_duplicated())[key].unique(maintain_order=True)
    if twice.len():
        found = f"the {key} table describes {twice.len()} ids more than once and differently"
        raise unread(source, f"{found} ({listed(twice, 3)})", "Keep one row an id")
    # The number at an id's end counts by value, 2 before 10 and u2 before u10, so that nothing
    # depends on the order of a file's rows: no draw, no tie, no embedding of an item.
    number = pl.col(key).str.extract(r"(\d{1,18})$").cast(pl.Int64)
    table = table.select(key, pl.exclude(key)).sort(
        pl.col(key).str.replace(r"\d{1,18}$", ""), number, key, nulls_last=False
    )
    rows = table.select(key).with_row_index("row")
    found_rows = ids.to_frame().join(rows, on=key, how="left", maintain_order="left")["row"]
    if found_rows.null_count():
        lost = ids.filter(found_rows.is_null()).unique(maintain_order=True)
        share = "none" if found_rows.null_count() == ids.len() else "not all"
        raise unread(
            source,
            f"{share} of the interactions' {key} values are in the {key} table: "
            f"{lost.len()} are missing ({listed(lost, 3)})",
            "Check that both files belong to one data set, or leave the side table out",
        )
    return table, found_rows.cast(pl.Int64).to_numpy().copy()


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
    that of their items, so that nothing depends on the order of a file's rows. Of a user's
    interactions with one item the first is kept: seen items are never recommended again.

    Raises:
        DataError: no events, ids without a row, ids with two different rows, times out of range.
    """
    if events.is_empty():
        raise unread(source, "it has no interactions", "Check the file")
    users, user = _indexed(events["user_id"], users, source)
    items, item = _indexed(events["item_id"], items, source)
    items = _with_titles(items)
    time = events["time"].to_numpy()
    if not (np.abs(time.astype(np.float64)) < 2.0**62).all():
        raise unread(source, "a time is out of range", "Give finite times")

    active = np.unique(user)
    if idle := users.height - active.size:
        warn(f"{source}: {idle} users without interactions are left out")
        users = users[active]
        user = np.searchsorted(active, user).astype(np.int64)
    if idle := items.height - np.unique(item).size:
        fate = "stay in the catalogue with popularity 0"
        warn(f"{source}: {idle} items without interactions {fate}")

    order = np.lexsort((item, time, user))
    _, first = np.unique(user[order] * (item.max() + 1) + item[order], return_index=True)
    if repeats := order.size - first.size:
        text = f"{repeats} repeated interactions of a user with the same item were dropped"
        warn(f"{source}: {text}; the first is kept", "repeats", repeats)
        order = order[np.sort(first)]
    whole = (time if time.dtype == np.int64 else np.floor(time)).astype(np.int64)[order]
    return Interactions(user[order], item[order], whole, users, items)


def _with_titles(items: pl.DataFrame) -> pl.DataFrame:
    """Give the item table `title`, distinct for every item, and `genres` where it has them.

    Films of one name are told apart by the year; what is then still the same, by the item's id,
    because a title that names two items could be grounded in neither. Genres written as one text
    are split: at the first of `MARKS` that the column holds, or where quotes are.
    """
    for names in (TITLE_COLUMNS, GENRE_COLUMNS, YEAR_COLUMNS):
        found = next((name for name in names if name in items.columns), names[0])
        items = items.rename({found: names[0]}, strict=False)
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
        items = items.with_columns(year=year.cast(pl.Int64), title=title)
    else:
        items = items.with_columns(title=title)
    twin = pl.col("title").is_duplicated()
    labelled = pl.col("title") + " [" + pl.col("item_id") + "]"
    items = items.with_columns(title=pl.when(twin).then(labelled).otherwise(pl.col("title")))
    return items.select("item_id", "title", pl.exclude("item_id", "title"))


def split_texts(values: pl.Series, marks: Sequence[str] = MARKS) -> pl.Series:
    """Texts that hold several values as lists of them: the names of records, what is in quotes, or
    what stands between one of `marks`; brackets around them are taken off."""
    if values.dtype != pl.String:
        return values
    whole = values.fill_null("").str.strip_chars()
    named = whole.str.contains(NAMED)
    text = whole.str.extract(BRACKETS).fill_null(whole)
    quoted = text.str.contains(LISTED)
    plain = text.filter(~(named | quoted))
    mark = next((m for m in marks if plain.str.contains(m, literal=True).any()), "|")
    cell = pl.element()
    within = cell.str.slice(1, cell.str.len_chars() - 2)
    frame = pl.DataFrame({"q": quoted, "r": named, "text": text, "whole": whole})
    names = (
        pl.col("whole").str.extract_all(NAMED).list.eval(cell.str.replace(r"^.name.\s*:\s*", ""))
    )
    parts = frame.select(
        pl.when("r")
        .then(names.list.eval(within))
        .when("q")
        .then(pl.col("text").str.extract_all(QUOTED).list.eval(within))
        .otherwise(pl.col("text").str.split(mark))
        .list.eval(cell.str.strip_chars())
    ).to_series()
    return parts.list.eval(cell.filter(cell != "")).alias(values.name)
