"""MovieLens' own files: `ratings.dat` with `::`, and ML-100k's `u.data` with tabs and pipes.

Formats: the README files of GroupLens' data sets ML-1M, ML-10M and ML-100k. Titles end in the year,
which becomes a column of its own, as in RecBole's version of the same data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.build import Table, Tables
from fudlr.data.text import UNIT, check_fields, decode, read_bytes, read_fields

RATINGS = ("user_id", "item_id", "rating", "timestamp")
DAT_USERS = ("user_id", "gender", "age", "occupation", "zip_code")
DAT_ITEMS = ("item_id", "title", "genres")
U_USERS = ("user_id", "age", "gender", "occupation", "zip_code")
U_ITEMS = ("item_id", "title", "release_date", "video_date", "url")
# The order of ML-100k's flags, where `u.genre` is not beside them.
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


def _lines(path: Path, separator: str, columns: tuple[str, ...]) -> Table:
    # GroupLens' older files are in latin-1, which needs no word.
    text = decode(read_bytes(path), str(path), "utf-8", "latin-1", quiet=True).strip(b"\n")
    if len(separator) > 1:  # polars splits at one byte
        if UNIT.encode() in text:
            raise DataError(f"{path} was to be read", "it is not text", "Fetch it again")
        text, separator = text.replace(separator.encode(), UNIT.encode()), UNIT
    check_fields(text, str(path), len(columns), separator)
    return Table(read_fields(text, str(path), separator, columns), str(path), first=1)


def with_year(items: pl.DataFrame) -> pl.DataFrame:
    """Split "Toy Story (1995)" into title and year; a title without year stays as it is."""
    title = pl.col("title").str.strip_chars()
    year = title.str.extract(r"\((\d{4})\)$")
    bare = title.str.replace(r"\s*\(\d{4}\)$", "")
    use = year.is_not_null() & (bare != "")
    return items.with_columns(
        title=pl.when(use).then(bare).otherwise(title), year=pl.when(use).then(year)
    )


def _side(path: Path, name: str, separator: str, columns: tuple[str, ...]) -> Table | None:
    file = path.parent / name
    return _lines(file, separator, columns) if file.is_file() else None


def _changed(table: Table | None, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Table | None:
    return Table(change(table.frame), table.label, table.first) if table else None


def read_dat(path: Path) -> Tables:
    """Read `ratings.dat` with `users.dat` and `movies.dat` where they exist.

    Args:
        path: the folder, or the ratings' file.

    Raises:
        DataError: what is missing, truncated or does not match, with file and line.
    """
    file = path / "ratings.dat" if path.is_dir() else path
    users = _side(file, "users.dat", "::", DAT_USERS)
    items = _side(file, "movies.dat", "::", DAT_ITEMS)
    return Tables(
        file.parent.name,
        _lines(file, "::", RATINGS),
        _changed(users, lambda frame: frame.select(U_USERS)),
        _changed(items, with_year),
    )


def _genre_names(path: Path) -> tuple[str, ...]:
    file = path.parent / "u.genre"
    if not file.is_file():
        return GENRES
    lines = (
        decode(read_bytes(file), str(file), "utf-8", "latin-1", quiet=True).decode().splitlines()
    )
    names = tuple(line.split("|")[0] for line in lines if line.strip())
    if len(set(names)) < len(names) or set(names) & set(U_ITEMS):
        raise DataError(f"{file} was to be read", "a genre stands there twice", "Mend the file")
    return names


def _u_items(frame: pl.DataFrame, label: str, names: tuple[str, ...]) -> pl.DataFrame:
    flags = frame.select(names)
    strange = [n for n in names if not flags[n].is_in(["0", "1"]).all()]
    if strange:
        raise DataError(
            f"{label} was to be read",
            f"the flag of the genre {strange[0]} is neither 0 nor 1 everywhere",
            "The file is damaged or of another form: fetch it again",
        )
    each = [pl.when(pl.col(n) == "1").then(pl.lit(n)) for n in names]
    genres = pl.concat_list(each).list.drop_nulls()
    return with_year(frame.select("item_id", "title", genres.alias("genres")))


def read_u_data(path: Path) -> Tables:
    """Read `u.data` with `u.user` and `u.item` where they exist; arguments as in `read_dat`."""
    file = path / "u.data" if path.is_dir() else path
    names = _genre_names(file)
    items = _side(file, "u.item", "|", (*U_ITEMS, *names))
    return Tables(
        file.parent.name,
        _lines(file, "\t", RATINGS),
        _side(file, "u.user", "|", U_USERS),
        _changed(items, lambda frame: _u_items(frame, str(file.parent / "u.item"), names)),
    )
