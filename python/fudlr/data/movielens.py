"""MovieLens' own files: `ratings.dat` with `::`, and ML-100k's `u.data` with tabs and pipes.

Formats: the README files of GroupLens' data sets ML-1M, ML-10M and ML-100k. Titles end in the year,
which becomes a column of its own, as in RecBole's version of the same data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl

from fudlr.data.build import Tables
from fudlr.data.text import UNIT, Table, read_fields, read_text, unread

RATINGS = ("user_id", "item_id", "rating", "timestamp")
DAT_USERS = ("user_id", "gender", "age", "occupation", "zip_code")
DAT_ITEMS = ("item_id", "title", "genres")
U_USERS = ("user_id", "age", "gender", "occupation", "zip_code")
U_ITEMS = ("item_id", "title", "release_date", "video_date", "url")
# The order of ML-100k's flags.
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


def _lines(path: Path, separator: str, columns: tuple[str, ...]) -> Table:
    # GroupLens' older files are in latin-1, which needs no word.
    text = read_text(path, "utf-8", "latin-1", quiet=True).strip(b"\n")
    if len(separator) > 1:  # polars splits at one byte
        if UNIT.encode() in text:
            raise unread(path, "it is not text", "Fetch it again")
        text, separator = text.replace(separator.encode(), UNIT.encode()), UNIT
    return Table(read_fields(text, str(path), separator, columns, first=1), str(path), 1)


def _side(
    path: Path,
    separator: str,
    columns: tuple[str, ...],
    change: Callable[[pl.DataFrame], pl.DataFrame] = lambda frame: frame,
) -> Table | None:
    if not path.is_file():
        return None
    table = _lines(path, separator, columns)
    return replace(table, frame=change(table.frame))


def with_year(items: pl.DataFrame) -> pl.DataFrame:
    """Split "Toy Story (1995)" into title and year; a title without year stays as it is."""
    title = pl.col("title").str.strip_chars()
    year = title.str.extract(r"\((\d{4})\)$")
    bare = title.str.replace(r"\s*\(\d{4}\)$", "")
    use = year.is_not_null() & (bare != "")
    return items.with_columns(
        title=pl.when(use).then(bare).otherwise(title), year=pl.when(use).then(year)
    )


def read_dat(path: Path) -> Tables:
    """Read `ratings.dat` with `users.dat` and `movies.dat` where they exist.

    Args:
        path: the folder, or the ratings' file.
    """
    file = path / "ratings.dat" if path.is_dir() else path
    return Tables(
        file.parent.name,
        _lines(file, "::", RATINGS),
        _side(file.with_name("users.dat"), "::", DAT_USERS, lambda frame: frame.select(U_USERS)),
        _side(file.with_name("movies.dat"), "::", DAT_ITEMS, with_year),
    )


def read_u_data(path: Path) -> Tables:
    """Read `u.data` with `u.user` and `u.item` where they exist; arguments as in `read_dat`."""
    file = path / "u.data" if path.is_dir() else path
    return Tables(
        file.parent.name,
        _lines(file, "\t", RATINGS),
        _side(file.with_name("u.user"), "|", U_USERS),
        _side(file.with_name("u.item"), "|", (*U_ITEMS, *GENRES), _u_items),
    )


def _u_items(frame: pl.DataFrame) -> pl.DataFrame:
    for name in GENRES:
        if not frame[name].is_in(["0", "1"]).all():
            found = f"the flag of the genre {name} is neither 0 nor 1 everywhere"
            raise unread("u.item", found, "The file is damaged or of another form: fetch it again")
    each = [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in GENRES]
    genres = pl.concat_list(each).list.drop_nulls()
    return with_year(frame.select("item_id", "title", genres.alias("genres")))
