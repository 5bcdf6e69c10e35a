"""Semantic IDs: each item a short tuple of codes, from a file or from the items' own table.

{"17": ["<a_3>", "<b_9>", "<c_0>"], …}      JSON, item id to codes, as MiniOneRec and LC-Rec
{"17": [3, 9, 0], …}                        the same in numbers, a letter for each place
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase

import polars as pl

from fudlr.common.errors import DataError, UsageError
from fudlr.common.reading import read_json
from fudlr.data.text import listed, warn

Codes = list[tuple[str, ...]]
COLUMN = "codes"
"""Of the items' table, where it has them."""
CODE = re.compile(r"<[^<>\s]+>")
WHOLE = re.compile(rf"(?:{CODE.pattern})+")


def item_codes(items: pl.DataFrame, file: str | None, *, distinct: bool = True) -> Codes:
    """The codes of every item [M], from `file`, or from the column `codes` of `items` without one.

    Args:
        items: The items' table.
        file: A JSON file.
        distinct: Refuse items with the codes of another.

    Raises:
        UsageError: There is neither.
        DataError: Items without codes, with other items' codes or with another number of them, or
            codes in no known form; each named.
    """
    if file is None and COLUMN not in items.columns:
        raise UsageError(
            "items were to be written as semantic IDs",
            "no file of codes is named, and the items' table has no column `codes`",
            "Name one with recommender.codes, or make it: fudlr data codes DATA --out codes.json",
        )
    ids = items["item_id"].to_list()
    if file is None:
        given = dict(zip(ids, items[COLUMN].to_list(), strict=True))
    else:
        given = read_json(
            Path(file), dict[str, list[str] | list[int] | str], "Name a JSON file of item id: codes"
        )
        if further := given.keys() - set(ids):
            warn(f"{file}: {len(further)} items are not in the data; their codes are left out")
    asked = f"the codes of {len(ids)} items were to be read from {file or 'the table of items'}"
    codes = _checked(ids, given, asked)
    if distinct:
        _check_distinct(ids, codes, asked)
    return codes


def told_apart(codes: Codes) -> tuple[Codes, list[int]]:
    """The codes with another last one for each item that has those of an earlier item: the first of
    all last codes that is free behind the same beginning; and which items these are.

    Raises:
        DataError: No last code is free.
    """
    taken, lasts, found = set(codes), sorted({own[-1] for own in codes}), list(codes)
    first: set[tuple[str, ...]] = set()
    changed = []
    for item, own in enumerate(codes):
        if own in first:
            free = ((*own[:-1], last) for last in lasts)
            found[item] = next((each for each in free if each not in taken), own)
            if found[item] == own:
                raise DataError(
                    "items with the codes of others were to be told apart",
                    f"behind {''.join(own[:-1])} all {len(lasts)} last codes are taken",
                    "Make all codes anew with `fudlr data codes`",
                )
            taken.add(found[item])
            changed.append(item)
        first.add(own)
    return found, changed


def written(codes: Sequence[int]) -> tuple[str, ...]:
    """Numbers as codes: (3, 9, 0) is <a_3>, <b_9>, <c_0>."""
    return tuple(f"<{letter}_{n}>" for letter, n in zip(ascii_lowercase, codes, strict=False))


def _checked(
    ids: Sequence[str], given: Mapping[str, list[str] | list[int] | str | None], asked: str
) -> Codes:
    missing = [name for name in ids if not given.get(name)]
    if missing:
        found = f"{len(missing)} items have none ({listed(missing, 3)})"
        raise DataError(asked, found, "Give every item of the catalogue its codes")
    texts = ["".join(_texts(given[name])) for name in ids]
    strange = [f"{name}: {text}" for name, text in zip(ids, texts, strict=True)
               if not WHOLE.fullmatch(text)]  # fmt: skip
    if strange:
        found = f"{len(strange)} items have other text in them ({listed(strange, 3)})"
        raise DataError(asked, found, "Write a code as <a_12>, without spaces, or as a number")
    codes = [tuple(CODE.findall(text)) for text in texts]
    usual = Counter(map(len, codes)).most_common(1)[0][0]
    others = [name for name, own in zip(ids, codes, strict=True) if len(own) != usual]
    if others:
        found = f"{len(others)} items have not {usual} codes as the others ({listed(others, 3)})"
        raise DataError(asked, found, "Give all items the same number of codes")
    return codes


def _check_distinct(ids: Sequence[str], codes: Codes, asked: str) -> None:
    owners: dict[tuple[str, ...], list[str]] = {}
    for name, own in zip(ids, codes, strict=True):
        owners.setdefault(own, []).append(name)
    if shared := [names for names in owners.values() if len(names) > 1]:
        pairs = [" and ".join(names[:2]) for names in shared]
        found = (
            f"{sum(map(len, shared))} items have the codes of another ({listed(pairs, 3)}), so "
            "that no answer could mean one of them"
        )
        remedy = "Tell them apart: fudlr data codes DATA --mend --out FILE"
        raise DataError(asked, found, remedy)


def _texts(given: list[str] | list[int] | str | None) -> Sequence[str]:
    if isinstance(given, str):
        return [given]
    parts = given or []
    if all(isinstance(part, int) for part in parts):
        return written([int(part) for part in parts])
    return [str(part) for part in parts]
