"""Groups of users and items, and which items are the long tail."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import polars as pl

from fudlr.common.errors import DataError, UsageError
from fudlr.config import DataConfig
from fudlr.data.interactions import Bools, Floats, Interactions, Ints, Samples
from fudlr.data.text import warn

# A numeric column with at most so many values is a code, and each value a group; so is a longer
# list of whole numbers that are many rows each, such as MovieLens' 21 occupations.
MAX_CODES, MAX_LONG_CODES, ROWS_A_CODE = 8, 32, 10
QUANTITIES = ("age", "year", "price", "income")
"""Columns of these names are no codes, however few their values."""
SMALL_GROUP = 10  # users: the gap to fewer is chance
# What data sets write where they do not know: no group.
UNKNOWN = (
    *(
        "",
        "unknown",
        "nan",
        "nat",
        "null",
        "none",
        "na",
        "n/a",
        "<na>",
        "\\n",
        "?",
        "-",
        "[]",
        "{}",
    ),
    *("undefined", "unspecified", "not specified", "not available", "missing"),
    *("(no genres listed)", "no genres listed"),
)


def _column(table: pl.DataFrame, column: str, asked: str) -> pl.Series:
    known = table.columns[1:]
    if column not in known:
        there = (
            f"The columns are {', '.join(known)}" if known else "The data have none for grouping"
        )
        raise UsageError(asked, "there is no such column", there)
    return table[column]


def _known(values: pl.Series) -> pl.Series:
    """Turn the ways of writing "unknown" into nulls."""
    text = values.cast(pl.String).str.strip_chars()
    return text.set(text.str.to_lowercase().is_in(UNKNOWN).fill_null(True), None)


def _binned(values: pl.Series) -> tuple[Ints, list[str]] | None:
    """Cut numbers at their quartiles; None where the values are not numbers to be cut."""
    numbers = values.cast(pl.Float64, strict=False)
    if numbers.null_count() > values.null_count() or values.n_unique() <= MAX_CODES:
        return None
    given = numbers.drop_nulls()
    count, whole = given.n_unique(), bool((given == given.floor()).all())
    many = ROWS_A_CODE * count <= given.len()
    if whole and many and count <= MAX_LONG_CODES and values.name.lower() not in QUANTITIES:
        return None
    array = numbers.to_numpy()
    known = np.isfinite(array)
    edges = np.unique(np.quantile(array[known], [0.25, 0.5, 0.75]))
    codes = np.where(known, np.searchsorted(edges, array, side="right"), -1).astype(np.int64)
    used = np.unique(codes[known])
    labels = [f"{array[codes == c].min():g} to {array[codes == c].max():g}" for c in used]
    return np.where(known, np.searchsorted(used, codes), -1).astype(np.int64), labels


def _coded(values: pl.Series) -> tuple[Ints, list[str]]:
    labels = values.drop_nulls().unique().sort()
    codes = np.searchsorted(labels.to_numpy(), values.fill_null("").to_numpy())
    return np.where(values.is_null().to_numpy(), -1, codes).astype(np.int64), labels.to_list()


def _members(values: pl.Series) -> tuple[Ints, Ints, list[str]]:
    """Rows, the group that each is in, and the groups' names; rows of lists are in several."""
    if values.dtype == pl.List:
        rows = pl.DataFrame({"row": np.arange(values.len()), "v": values}).explode("v")
        rows = rows.with_columns(v=_known(rows["v"])).drop_nulls().unique()
        codes, labels = _coded(rows["v"])
        return rows["row"].to_numpy(), codes, labels
    values = _known(values)
    codes, labels = _binned(values) or _coded(values)
    row = np.flatnonzero(codes >= 0)
    return row, codes[row], labels


def count_groups(values: pl.Series) -> tuple[dict[str, int], int]:
    """Sizes of the groups of a column, the largest first, and the rows without a group.

    Rows of lists count in each group that they name; numbers are cut as `user_groups` cuts them.
    """
    row, codes, labels = _members(values)
    size = np.bincount(codes, minlength=len(labels))
    order = np.argsort(-size, kind="stable")
    return {labels[i]: int(size[i]) for i in order}, values.len() - np.unique(row).size


def user_groups(
    interactions: Interactions, column: str, min_size: int = SMALL_GROUP
) -> tuple[Ints, list[str]]:
    """Group users by a column of their table.

    Numbers with more than a few values are cut at their quartiles. Groups of fewer than `min_size`
    users are left out with a warning: the gap to a handful of users is chance.

    Returns:
        codes: [U] int64, -1 for users without a group.
        labels: the groups' names, in the order of the codes.

    Raises:
        UsageError: no such column, or one of lists.
        DataError: fewer than two groups of `min_size` users.
    """
    asked = f"user groups by {column!r} were asked for"
    values = _column(interactions.users, column, asked)
    if values.dtype == pl.List:
        found = "it holds lists, and a user is in one group"
        raise UsageError(asked, found, "Choose a column with one value a user")
    row, codes, labels = _members(values)
    size = np.bincount(codes, minlength=len(labels))
    large = np.flatnonzero(size >= min_size)
    if large.size < 2:
        shown = ", ".join(f"{label} ({n})" for label, n in list(zip(labels, size, strict=True))[:6])
        raise DataError(
            asked,
            f"{large.size} of {len(labels)} groups have at least {min_size} users: {shown}",
            "Choose another column, or a lower min_size where so few users are enough",
        )
    if large.size < len(labels):
        small = ", ".join(f"{labels[i]} ({size[i]})" for i in np.flatnonzero(size < min_size))
        warn(f"groups of {column!r} with fewer than {min_size} users are left out: {small}")
    renumber = np.full(len(labels), -1, dtype=np.int64)
    renumber[large] = np.arange(large.size)
    groups = np.full(values.len(), -1, dtype=np.int64)
    groups[row] = renumber[codes]
    return groups, [labels[i] for i in large]


def item_groups(interactions: Interactions, column: str = "genres") -> tuple[Floats, list[str]]:
    """Group items by a column of their table; an item in several groups is split equally.

    Returns:
        membership: [M, G] float64; rows sum to 1, or are 0 where the item's groups are unknown.
        labels: the groups' names.

    Raises:
        UsageError: no such column.
        DataError: fewer than two groups, or as many as items.
    """
    asked = f"item groups by {column!r} were asked for"
    row, codes, labels = _members(_column(interactions.items, column, asked))
    membership = np.zeros((interactions.n_items, len(labels)))
    membership[row, codes] = 1.0
    n_known = int(membership.any(axis=1).sum())
    if len(labels) < 2 or len(labels) >= n_known:
        raise DataError(
            asked,
            f"it has {len(labels)} groups for {n_known} items",
            "Choose a column that puts the items into two or more groups of several items",
        )
    return membership / np.maximum(membership.sum(axis=1, keepdims=True), 1.0), labels


@lru_cache(maxsize=4)  # said once, for validation and test prompts together
def groups_or_none(
    interactions: Interactions, user_column: str, item_column: str
) -> tuple[Ints, list[str], Floats]:
    """Groups of users and of items by these columns; none, with a warning, where there are none.

    Metrics that compare groups are then left out, and the others are computed.

    Returns:
        codes [U] and labels, as of `user_groups`; membership [M, G], as of `item_groups`.

    Raises:
        UsageError: a column that was named, being no default, and does not exist.
    """
    users = np.full(interactions.n_users, -1, dtype=np.int64), list[str]()
    items = np.zeros((interactions.n_items, 0)), list[str]()
    for field, column, table in (
        ("user_group", user_column, interactions.users),
        ("item_group", item_column, interactions.items),
    ):
        if column not in table.columns and column == DataConfig.model_fields[field].default:
            found = f"the data have no column {column!r}"
        else:
            try:
                if field == "user_group":
                    users = user_groups(interactions, column)
                else:
                    items = item_groups(interactions, column)
                continue
            except DataError as error:
                found = f"by {column!r}, {error.found}"
        warn(f"metrics that need groups (data.{field}) are left out: {found}", "no_groups")
    return *users, items[0]


def history_groups(samples: Samples, membership: Floats) -> Floats:
    """Return each sample's mean membership over its history: [n, G], 0 where there is none."""
    rows = np.zeros((len(samples), membership.shape[1]))
    for i in range(len(samples)):
        history = samples.history(i)
        rows[i] = membership[history].sum(axis=0) / max(history.size, 1)
    return rows


def tail_items(popularity: Ints, share: float = 0.2) -> Bools:
    """Mark the long tail: [M] bool. Equally popular items are taken in the order of their index.

    Args:
        popularity: [M] counts in training data.
        share: the tail is all but this share of the items, the most popular ones.
    """
    order = np.argsort(-popularity, kind="stable")
    tail = np.ones(popularity.size, dtype=bool)
    tail[order[: max(round(share * popularity.size), 1)]] = False
    return tail
