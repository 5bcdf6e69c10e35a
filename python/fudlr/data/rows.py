"""Samples that are rows of somebody's own data set, with what is known of their users and items.

A row's user, target and history may be unknown: they make a mask readable, and training needs none
of them. A prompt that metrics are measured on has a user and a target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.interactions import Interactions, Ints, Samples

UNKNOWN = -1
COLUMNS = {"id": "id", "user": "user_id", "item": "item_id", "history": "history"}
"""What a row's fields are called, unless others are named."""


@dataclass(frozen=True)
class RowTable:
    """N rows; `UNKNOWN` stands for a user or a target that is not known.

    Attributes:
        rows: Whatever makes a batch of them.
        ids: [N] int64, no two the same.
        user, target: [N] int64, indices into the users and items of the interactions.
        history: [N], items chosen before, oldest first.
        fingerprint: Digest of the rows, where they are texts.
    """

    rows: Sequence[Any]
    ids: Ints
    user: Ints
    target: Ints
    history: Sequence[Ints]
    fingerprint: str = ""


@dataclass(frozen=True, eq=False)
class RowSamples(Samples):
    """Samples whose positions are rows of a table, and not of the interactions."""

    table: RowTable

    @property
    def ids(self) -> Ints:
        """[n] int64, the rows' own."""
        return self.table.ids[self.position]

    @property
    def user(self) -> Ints:
        """[n] int64, index into `interactions.users`, or `UNKNOWN`."""
        return self.table.user[self.position]

    @property
    def target(self) -> Ints:
        """[n] int64, index into `interactions.items`, or `UNKNOWN`."""
        return self.table.target[self.position]

    @property
    def time(self) -> Ints:
        """[n] int64, 0: rows have none."""
        return np.zeros(len(self), dtype=np.int64)

    @property
    def rows(self) -> list[Any]:
        """The rows themselves."""
        return [self.table.rows[int(at)] for at in self.position]

    def history(self, i: int) -> Ints:
        """The items that row `i` names as chosen before, oldest first: [h] int64."""
        return self.table.history[int(self.position[i])]

    def take(self, index: Any) -> RowSamples:
        """Return the samples at `index`, in that order."""
        return RowSamples(self.interactions, self.position[index], self.table)


def named(values: pl.Series, index: Ints) -> pl.Series:
    """`values` at `index`, null where that is `UNKNOWN`."""
    return values.gather(pl.Series(index).replace(UNKNOWN, None))


class Catalogue:
    """Where users and items stand in their tables.

    Args:
        users, items: Tables whose first column is the id.
    """

    def __init__(self, users: pl.DataFrame, items: pl.DataFrame) -> None:
        self.users, self.items = users, items
        self._at = {
            "user": {name: i for i, name in enumerate(users["user_id"].to_list())},
            "item": {name: i for i, name in enumerate(items["item_id"].to_list())},
        }

    def index(self, kind: str, name: Any, where: str) -> int:
        """The place of the user or item `name`; `UNKNOWN` of None.

        Raises:
            DataError: The table has none of that id; `where` says who names it.
        """
        if name is None:
            return UNKNOWN
        found = self._at[kind].get(str(name))
        if found is None:
            raise DataError(
                f"{where} was to be read",
                f"its {kind} {str(name)!r} is not in the table of {kind}s",
                f"Give a table that has all {kind}s, under the ids that rows use",
            )
        return found

    def table(self, rows: Sequence[Any], what: str, columns: Mapping[str, str]) -> RowTable:
        """The rows with what their fields name.

        Raises:
            DataError: An id that is no whole number or stands twice, or an unknown user or item.
        """
        found: dict[str, list[Any]] = {"id": [], "user": [], "item": [], "history": []}
        for number in range(len(rows)):
            row, where = rows[number], f"row {number} of {what}"
            given = {key: row.get(name) for key, name in columns.items()}
            whole = isinstance(given["id"], int) and not isinstance(given["id"], bool)
            if given["id"] is not None and not whole:
                raise DataError(
                    f"{where} was to be read",
                    f"its id is {given['id']!r}",
                    "Number the rows with whole numbers, or leave ids out to count rows",
                )
            found["id"].append(number if given["id"] is None else given["id"])
            found["user"].append(self.index("user", given["user"], where))
            found["item"].append(self.index("item", given["item"], where))
            shown = [self.index("item", each, where) for each in given["history"] or ()]
            found["history"].append(np.array(shown, dtype=np.int64))
        arrays = {key: np.array(found[key], dtype=np.int64) for key in ("id", "user", "item")}
        if len(np.unique(arrays["id"])) < len(rows):
            raise DataError(
                f"{what} were to be told apart by their ids",
                "two of them have the same",
                "Give every row an id of its own",
            )
        return RowTable(rows, arrays["id"], arrays["user"], arrays["item"], found["history"])

    def interactions(self, tables: Iterable[RowTable]) -> Interactions:
        """Every choice that the rows name, once, in their order."""
        pairs = dict.fromkeys(pair for table in tables for pair in choices(table))
        found = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
        order = found[:, 0].argsort(kind="stable")
        user, item = found[order].T
        return Interactions(user, item, order, self.users, self.items)


def choices(table: RowTable) -> Iterable[tuple[int, int]]:
    """(user, item) of every known choice that rows name, history before target."""
    for user, target, history in zip(table.user, table.target, table.history, strict=True):
        for item in (*history, target):
            if UNKNOWN not in (user, item):
                yield int(user), int(item)
