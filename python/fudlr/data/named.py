"""Users, items and samples that a person names by id: read from a file, and found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from fudlr.common.errors import DataError
from fudlr.data.interactions import Ints

SHOWN = 3
"""Unknown ids that an error names, each with the ids nearest to it."""


def read_ids(path: Path, kind: str) -> list[str]:
    """The ids in a text file, one a line; empty lines are left out.

    Args:
        path: The file.
        kind: Of what: `user`, `item` or `sample`.

    Raises:
        DataError: It cannot be read, or names none.
    """
    asked, remedy = f"the {kind}s in {path} were to be taken", f"Write one {kind} id a line"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(asked, f"the file cannot be read ({error})", remedy) from error
    if not (ids := [line.strip() for line in lines if line.strip()]):
        raise DataError(asked, "the file names none", remedy)
    return ids


def places(ids: Iterable[Any], known: Sequence[Any], kind: str, where: str) -> Ints:
    """The place in `known` of each id, by its text.

    Args:
        ids: Of any type.
        known: All ids that there are.
        kind: Of what: `user`, `item` or `sample`.
        where: What they are looked up in, in words.

    Raises:
        DataError: Some are unknown; the first are named with the nearest known ones.
    """
    place = {str(name): at for at, name in enumerate(known)}
    names = list(map(str, ids))
    if unknown := [name for name in dict.fromkeys(names) if name not in place]:
        told = []
        for name in unknown[:SHOWN]:
            near = get_close_matches(name, place, n=SHOWN, cutoff=0)
            told.append(f"{name!r} (nearest: {', '.join(map(repr, near)) or 'none'})")
        raise DataError(
            f"{len(names)} {kind}{'s' * (len(names) != 1)} were to be found in {where}",
            f"{len(unknown)} of them {'is' if len(unknown) == 1 else 'are'} not there: "
            + ", ".join(told),
            f"Write {kind} ids as the data have them",
        )
    return np.array([place[name] for name in names], dtype=np.int64)
