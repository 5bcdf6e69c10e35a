"""Candidates: the items that a prompt chooses from, where the whole catalogue is not what is meant.

They are drawn for each prompt, or named for each user by a table of one's own.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl

from fudlr.common.errors import DataError, UsageError
from fudlr.data.interactions import Interactions, Ints, Samples
from fudlr.data.tables import READ, ending


def candidates_of(samples: Samples, given: int | str) -> Ints:
    """What the prompts choose from: [n, c] int64, ascending; shorter rows repeat their target.

    Args:
        samples: The prompts.
        given: `data.candidates`: how many are drawn for each, or a table of them by user.

    Raises:
        UsageError: A sample has fewer unseen items than are to be drawn.
        DataError: The table cannot be read, or lacks a user.
    """
    if isinstance(given, int):
        return candidate_items(samples, given, 0)
    lists = _by_user(Path(given), samples.interactions)
    own = [lists.get(user, []) for user in samples.user.tolist()]
    if empty := sum(not row for row in own):
        raise DataError(
            f"the candidates in {given} were to be chosen from",
            f"it names none for {empty} of the {len(own)} users that are asked",
            "Add them, or draw candidates with data.candidates",
        )
    rows = np.repeat(samples.target[:, None], max(map(len, own), default=0) + 1, axis=1)
    for row, mine in zip(rows, own, strict=True):
        row[: len(mine)] = mine
    return np.sort(rows, axis=1)


@lru_cache(maxsize=4)
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
