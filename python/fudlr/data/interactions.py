"""Who chose what, and when: interactions, samples of them, and a split for training.

A sample is a position in the interactions: the item there is the target, everything the same user
chose earlier is its history. Nothing is copied, so a sample stays readable wherever it turns up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fudlr.common.errors import DataError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class DataWarning(UserWarning):
    """Data that can be used, with something about it that a person should know.

    Args:
        message: what a person should know.
        kind: what was counted, for a program: `repeats`, `no_user_id`; empty for anything else.
        count: how many of them there are.
    """

    def __init__(self, message: str, kind: str = "", count: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.count = count


@dataclass(frozen=True, eq=False)
class Interactions:
    """All interactions, sorted by user, then by time; ties keep the order of the source.

    Args:
        user: [N] int64, index of a row of `users`, ascending.
        item: [N] int64, index of a row of `items`.
        time: [N] int64, in the unit of the source, ascending within a user.
        users: [U] table; `user_id` (str) first, then what is known of each user.
        items: [M] table; `item_id` (str) first, then `title` (str), `genres` (list of str), ...

    Raises:
        DataError: where lengths, order or indices do not fit together.
    """

    user: Ints
    item: Ints
    time: Ints
    users: pl.DataFrame
    items: pl.DataFrame

    def __post_init__(self) -> None:
        """Check once, so that nothing later has to."""
        asked, size = "interactions were to be set up", self.user.size
        for name in ("user", "item", "time"):
            column = getattr(self, name)
            if column.dtype != np.int64 or column.shape != (size,):
                found = f"`{name}` is {column.dtype} {list(column.shape)}"
                remedy = f"Give int64 of one dimension and one length ({size})"
                raise DataError(asked, found, remedy)
        if not size:
            raise DataError(asked, "there are none", "Give at least one interaction")
        for name in ("user", "item"):
            index, table, key = getattr(self, name), getattr(self, f"{name}s"), f"{name}_id"
            if not table.columns or table.columns[0] != key or table.schema[key] != pl.String:
                found = f"the first column of `{name}s` is not `{key}` as text"
                raise DataError(asked, found, f"Put `{key}` first, as strings")
            low, high = index.min(), index.max()
            if low < 0 or high >= table.height:
                found = f"`{name}` runs from {low} to {high}, `{name}s` has {table.height} rows"
                raise DataError(asked, found, f"Every `{name}` is the index of a row of `{name}s`")
        step = np.diff(self.user)
        if (step < 0).any() or (np.diff(self.time)[step == 0] < 0).any():
            raise DataError(asked, "they are not sorted", "Sort by user, then by time")

    @property
    def n_users(self) -> int:
        """U, the rows of `users`."""
        return self.users.height

    @property
    def n_items(self) -> int:
        """M, the rows of `items`: the catalogue."""
        return self.items.height

    def __len__(self) -> int:
        return int(self.user.size)

    @cached_property
    def user_starts(self) -> Ints:
        """[U + 1] int64: user u's interactions are `user_starts[u]` up to `user_starts[u + 1]`."""
        return np.searchsorted(self.user, np.arange(self.n_users + 1)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Samples:
    """Positions in the interactions, each a target with the history before it.

    Args:
        interactions: what the positions point into.
        position: [n] int64.
    """

    interactions: Interactions
    position: Ints

    def __len__(self) -> int:
        return int(self.position.size)

    @property
    def ids(self) -> Ints:
        """[n] int64, one stable number a sample: its position in the interactions."""
        return self.position

    @cached_property
    def user(self) -> Ints:
        """[n] int64, index into `interactions.users`."""
        return self.interactions.user[self.position]

    @cached_property
    def target(self) -> Ints:
        """[n] int64, index into `interactions.items`."""
        return self.interactions.item[self.position]

    @cached_property
    def time(self) -> Ints:
        """[n] int64."""
        return self.interactions.time[self.position]

    def history(self, i: int) -> Ints:
        """All items that sample `i`'s user chose before its target, oldest first: [h] int64."""
        start = self.interactions.user_starts[self.user[i]]
        return self.interactions.item[start : self.position[i]]

    def take(self, index: Any) -> Samples:
        """Return the samples at `index` (integers, a slice or a boolean mask), in that order."""
        return Samples(self.interactions, self.position[index])

    def between(self, start: float, stop: float) -> Samples:
        """Those with start <= time < stop, in their order."""
        return self.take((self.time >= start) & (self.time < stop))

    def seen(self) -> Bools:
        """[n, M] bool: the items of each sample's history, which are not recommended again."""
        seen = np.zeros((len(self), self.interactions.n_items), dtype=bool)
        for i in range(len(self)):
            seen[i, self.history(i)] = True
        return seen

    def seen_lists(self) -> tuple[Ints, Ints]:
        """The same as lists: [n + 1] int64 offsets into [S] int64 items, each once in a list."""
        histories, m = [self.history(i) for i in range(len(self))], self.interactions.n_items
        rows = np.repeat(np.arange(len(self)), [each.size for each in histories])
        pairs = np.unique(rows * m + np.concatenate([*histories, rows[:0]]))
        return np.searchsorted(pairs, np.arange(len(self) + 1) * m), pairs % m


@dataclass(frozen=True, eq=False)
class Split:
    """What trains, what chooses, and what judges.

    Args:
        interactions: all of them.
        pretrain: [R, 3] int64 rows (user, start, stop): ranges of positions for pretraining.
        train: samples for the adapter.
        valid: samples whose gradient steers the debiasing.
        test: samples that figures are reported on.
        popularity: [M] int64, each item's count in all training data, pretraining's included.
        left_out: users with too few interactions to be in train, valid and test.
    """

    interactions: Interactions
    pretrain: Ints
    train: Samples
    valid: Samples
    test: Samples
    popularity: Ints
    left_out: int = 0
