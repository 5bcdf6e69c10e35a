"""Which users make up a set: those with one value in a column, or those that a file names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fudlr.data import Interactions, user_groups
from fudlr.data.interactions import Bools
from fudlr.data.named import places, read_ids


@dataclass(frozen=True, eq=False)
class UserSet:
    """Some users under a name.

    Attributes:
        name: As results call it.
        member: [U] bool.
    """

    name: str
    member: Bools


def sets_of_column(interactions: Interactions, column: str) -> list[UserSet]:
    """A set for each group of a user column, as `user_groups` makes them.

    Raises:
        UsageError: There is no such column.
        DataError: Fewer than two groups are large enough.
    """
    codes, labels = user_groups(interactions, column)
    return [UserSet(label, codes == code) for code, label in enumerate(labels)]


def sets_of_files(interactions: Interactions, files: Sequence[Path]) -> list[UserSet]:
    """A set for each text file, named by it, with a user id a line.

    Raises:
        DataError: A file cannot be read, names no user, or one that the data do not have.
    """
    known = interactions.users["user_id"].to_list()
    sets = []
    for path in files:
        member = np.zeros(len(known), dtype=bool)
        member[places(read_ids(path, "user"), known, "user", "the data")] = True
        sets.append(UserSet(path.stem, member))
    return sets
