"""Candidates: the items that a prompt chooses from, where the whole catalogue is not what is meant.

They are drawn for each prompt, or named for each user by a table of one's own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from fudlr.common.errors import DataError, UsageError
from fudlr.config import DataConfig
from fudlr.data.interactions import Bools, Interactions, Ints, Samples
from fudlr.data.tables import READ, ending


class Candidates:
    """What prompts choose from, as the options say.

    Args:
        config: `candidates` is a number, or a file of lists.
    """

    def __init__(self, config: DataConfig) -> None:
        given = config.candidates
        self._count = given if isinstance(given, int) else None
        self._lists = Path(given) if isinstance(given, str) else None
        self._read: tuple[Interactions, dict[int, list[int]]] | None = None

    def __bool__(self) -> bool:
        """Whether there are any: without, the whole catalogue is chosen from."""
        return self._count is not None or self._lists is not None

    def items(self, samples: Samples) -> Ints:
        """[n, c] int64, ascending in each row; shorter rows repeat their target.

        Raises:
            UsageError: A sample has fewer unseen items than are to be drawn.
            DataError: The lists cannot be read, or lack a user.
        """
        if self._lists is None:
            assert self._count is not None  # else nobody asks
            return candidate_items(samples, self._count, 0)
        if self._read is None or self._read[0] is not samples.interactions:
            self._read = samples.interactions, _by_user(self._lists, samples.interactions)
        own = [self._read[1].get(user, []) for user in samples.user.tolist()]
        if empty := sum(not len(row) for row in own):
            raise DataError(
                f"the candidates in {self._lists} were to be chosen from",
                f"it names none for {empty} of the {len(own)} users that are asked",
                "Add them, or draw candidates with data.candidates",
            )
        rows = np.repeat(samples.target[:, None], max(map(len, own), default=0) + 1, axis=1)
        for row, mine in zip(rows, own, strict=True):
            row[: len(mine)] = mine
        return np.sort(rows, axis=1)

    def mask(self, samples: Samples) -> Bools:
        """The same as [n, M] bool."""
        mask = np.zeros((len(samples), samples.interactions.n_items), dtype=bool)
        np.put_along_axis(mask, self.items(samples), True, axis=1)
        return mask


def _by_user(path: Path, data: Interactions) -> dict[int, list[int]]:
    """The items of each user of the file, as indices."""
    asked = f"the candidates in {path} were to be read"
    if ending(path) not in READ or not path.is_file():
        raise DataError(asked, "it is no file of a known form", f"Name one with {', '.join(READ)}")
    table = READ[ending(path)](path).frame
    if missing := [name for name in ("user_id", "item_id") if name not in table.columns]:
        remedy = "Write user_id and item_id: a row for each candidate, or a list of them in a row"
        raise DataError(asked, f"it has no column {missing[0]}", remedy)
    table = table.select("user_id", "item_id")
    if table.schema["item_id"] == pl.List:
        table = table.explode("item_id")
    table = table.select(pl.all().cast(pl.String)).drop_nulls().unique()
    items = data.items.select("item_id").with_row_index("item")
    found = table.join(items, on="item_id", how="left")
    unknown = found.filter(pl.col("item").is_null())["item_id"]
    if len(unknown):
        of_them = f"{unknown.n_unique()} of its items are not in the data"
        remedy = "Correct the ids, or add the items to the item table"
        raise DataError(asked, f"{of_them} (the first: {unknown[0]!r})", remedy)
    users = data.users.select("user_id").with_row_index("user")
    found = found.join(users, on="user_id", how="inner")
    return dict(found.group_by("user").agg("item").iter_rows())


def candidate_items(samples: Samples, count: int, seed: int) -> Ints:
    """The target and other items that the user has not seen, drawn with equal chances.

    What a sample gets depends on the seed and its place in the data alone, not on the batch.

    Returns:
        [n, count] int64, ascending in each row.

    Raises:
        UsageError: A sample has fewer unseen items.
    """
    rows = np.zeros((len(samples), count), dtype=np.int64)
    for i, (position, target) in enumerate(zip(samples.position, samples.target, strict=True)):
        free = np.ones(samples.interactions.n_items, dtype=bool)
        free[samples.history(i)] = False
        free[target] = False
        others = np.flatnonzero(free)
        if others.size < count - 1:
            raise UsageError(
                f"{count} candidates a prompt were asked for",
                f"a user has only {others.size + 1} items left that are not seen",
                "Lower data.candidates, or leave it out for the whole catalogue",
            )
        rng = np.random.default_rng((seed, int(position)))
        rows[i] = np.sort(np.append(rng.choice(others, count - 1, replace=False), target))
    return rows
