"""Which users make up a set: those with one value in a column, or those that a file names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fudlr.common.errors import DataError
from fudlr.data import Interactions, user_groups
from fudlr.data.interactions import Bools


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
    ids = interactions.users["user_id"].cast(str).to_list()
    place = {name: at for at, name in enumerate(ids)}
    return [UserSet(path.stem, _members(path, place)) for path in files]


def _members(path: Path, place: dict[str, int]) -> Bools:
    asked = f"the users in {path} were to make up a set"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            asked, f"it cannot be read ({error})", "Name a text file with a user id a line"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    unknown = [name for name in names if name not in place]
    if unknown or not names:
        found = f"{len(unknown)} of {len(names)} are no user ids of the data"
        example = f" (the first: {unknown[0]!r})" if unknown else ""
        raise DataError(asked, found + example, "Write the ids as the data have them, one a line")
    member = np.zeros(len(place), dtype=bool)
    member[[place[name] for name in names]] = True
    return member
