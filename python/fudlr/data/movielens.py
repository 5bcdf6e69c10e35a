"""MovieLens' own files: `ratings.dat` with `::`, and ML-100k's `u.data` with tabs and pipes.

Formats: the README files of GroupLens' data sets ML-1M, ML-10M and ML-100k. Titles end in the year,
which becomes a column of its own, as in RecBole's version of the same data.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.build import Ties, build_interactions
from fudlr.data.columns import Place, as_events
from fudlr.data.interactions import Interactions
from fudlr.data.text import check_fields, decode, read_bytes, read_fields, refuse_blank

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
_UNIT = "\x1f"  # polars splits at one byte; `::` is two


def _lines(path: Path, separator: str, columns: tuple[str, ...]) -> pl.DataFrame:
    text = decode(read_bytes(path), str(path), "utf-8", "latin-1").strip(b"\n")
    if len(separator) > 1:
        if _UNIT.encode() in text:
            raise DataError(f"{path} was to be read", "it is not text", "Fetch it again")
        text, separator = text.replace(separator.encode(), _UNIT.encode()), _UNIT
    check_fields(text, str(path), len(columns), separator)
    frame = read_fields(text, str(path), separator, columns)
    for column in (c for c in columns if c.endswith("_id")):
        refuse_blank(frame[column], str(path), first=1)
    return frame


def _with_year(items: pl.DataFrame) -> pl.DataFrame:
    """Split "Toy Story (1995)" into title and year; a title without year stays as it is."""
    title = pl.col("title").str.strip_chars()
    year = title.str.extract(r"\((\d{4})\)$")
    bare = title.str.replace(r"\s*\(\d{4}\)$", "")
    use = year.is_not_null() & (bare != "")
    return items.with_columns(
        title=pl.when(use).then(bare).otherwise(title), year=pl.when(use).then(year)
    )


def _beside(path: Path, names: tuple[str, ...]) -> Path | None:
    return next((path.parent / n for n in names if (path.parent / n).is_file()), None)


def _file(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path


def _events(ratings: pl.DataFrame, path: Path) -> pl.DataFrame:
    return as_events(ratings, {}, Place(str(path), first=1))


def read_dat(path: Path, ties: Ties = "item") -> Interactions:
    """Read `ratings.dat` with `users.dat` and `movies.dat` where they exist.

    Args:
        path: the folder, or the ratings' file.
        ties: order at the same time; see `build_interactions`.

    Raises:
        DataError: what is missing, truncated or does not match, with file and line.
    """
    file = _file(path, "ratings.dat")
    events = _events(_lines(file, "::", RATINGS), file)
    users, items = _beside(file, ("users.dat",)), _beside(file, ("movies.dat",))
    return build_interactions(
        events,
        _lines(users, "::", DAT_USERS).select(U_USERS) if users else None,
        _with_year(_lines(items, "::", DAT_ITEMS)) if items else None,
        file.parent.name,
        ties,
    )


def _genre_names(path: Path) -> tuple[str, ...]:
    file = _beside(path, ("u.genre",))
    if file is None:
        return GENRES
    lines = decode(read_bytes(file), str(file), "utf-8", "latin-1").decode().splitlines()
    names = tuple(line.split("|")[0] for line in lines if line.strip())
    if len(set(names)) < len(names) or set(names) & set(U_ITEMS):
        raise DataError(f"{file} was to be read", "a genre stands there twice", "Mend the file")
    return names


def _u_items(path: Path) -> pl.DataFrame:
    names = _genre_names(path)
    table = _lines(path, "|", (*U_ITEMS, *names))
    flags = table.select(names)
    strange = [n for n in names if not flags[n].is_in(["0", "1"]).all()]
    if strange:
        raise DataError(
            f"{path} was to be read",
            f"the flag of the genre {strange[0]} is neither 0 nor 1 everywhere",
            "The file is damaged or of another form: fetch it again",
        )
    each = [pl.when(pl.col(n) == "1").then(pl.lit(n)) for n in names]
    genres = pl.concat_list(each).list.drop_nulls()
    return _with_year(table.select("item_id", "title", genres.alias("genres")))


def read_u_data(path: Path, ties: Ties = "item") -> Interactions:
    """Read `u.data` with `u.user` and `u.item` where they exist; arguments as in `read_dat`."""
    file = _file(path, "u.data")
    events = _events(_lines(file, "\t", RATINGS), file)
    users, items = _beside(file, ("u.user",)), _beside(file, ("u.item",))
    return build_interactions(
        events,
        _lines(users, "|", U_USERS) if users else None,
        _u_items(items) if items else None,
        file.parent.name,
        ties,
    )
