"""MiniOneRec's data: rows of a history and the item after it, in ids, titles and semantic IDs.

    FOLDER/train|valid|test/NAME.csv     user_id, history_item_id, item_id, item_title, item_sid, …
    FOLDER/info/NAME.txt                 semantic ID, title, item id, with tabs between
    FOLDER/index/SHORT.item.json         item id to title, brand, categories, …; NAME starts so

Kong et al. 2025, arXiv 2510.24431. Rows have no times: the order of the files, and of the rows in
them, is taken, as they were written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from fudlr.common.errors import DataError
from fudlr.common.reading import read_json
from fudlr.data.build import Tables
from fudlr.data.codes import CODE, COLUMN
from fudlr.data.tables import read_csv
from fudlr.data.text import PARTS, Table, read_text, warn

FIELDS = ("user_id", "item_id", "item_sid", "history_item_id", "history_item_sid")
IDS = re.compile(r"[^\s,\[\]'\"]+")
SIDS = re.compile(rf"(?:{CODE.pattern})+")
ABOUT = ("categories", "brand")
"""Of an item, beside its title."""


def minionerec_files(path: Path) -> list[Path]:
    """The rows' files in their order: of the folder, or those of the named one's data set."""
    if not path.is_dir():
        parts = [path]
        if path.parent.name in PARTS:
            parts = [path.parents[1] / part / path.name for part in PARTS]
        return [file for file in parts if file.is_file() and _is_rows(file)]
    files = [path / f"{part}.csv" for part in PARTS]
    files += [file for part in PARTS for file in sorted((path / part).glob("*.csv"))]
    return [file for file in files if file.is_file() and _is_rows(file)]


def _is_rows(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.readline(4096).decode(errors="replace")
    return set(FIELDS) <= {name.strip() for name in head.split(",")}


class _Items:
    """What is known of the items: their ids, titles and codes."""

    def __init__(self, asked: str) -> None:
        self._asked = asked
        self.codes: dict[str, str] = {}
        self.titles: dict[str, str] = {}

    def add(self, item: str, codes: str, title: str = "") -> None:
        """One item as a row has it."""
        before = self.codes.setdefault(item, codes)
        if before != codes:
            found = f"the item {item!r} is {before} in one row and {codes} in another"
            raise DataError(self._asked, found, "Write all files with one index")
        if title:
            self.titles.setdefault(item, title)


def minionerec_tables(path: Path) -> Tables:
    """Users' sequences and the items, with a column `codes`.

    Args:
        path: One of the files, or a folder that holds one data set.

    Raises:
        DataError: Several data sets; an item of two codes; a history whose ids and codes differ in
            number.
    """
    files = minionerec_files(path)
    asked = f"data were to be read from {path}"
    if len({file.name for file in files if file.parent.name in PARTS}) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in files[:3])
        raise DataError(asked, "it holds several data sets", f"Name a file, such as {names}")
    items = _Items(asked)
    for line in _lines(files[0]):
        codes, *title, item = line.split("\t")
        items.add(item.strip(), codes.strip(), " ".join(title).strip())
    chosen: dict[str, set[str]] = {}
    events = [event for file in files for event in _events(read_csv(file), items, chosen)]
    warn(f"{files[0].stem}: rows have no times: their order is taken", "no_times")
    frame = pl.DataFrame(events, ["user_id", "item_id"], orient="row").with_row_index("time")
    ids = list(items.codes)
    side = {
        "item_id": ids,
        "title": [items.titles.get(i, "") for i in ids],
        COLUMN: [CODE.findall(codes) for codes in items.codes.values()],
        **_about(files[0], ids),
    }
    label = str(files[0])
    return Tables(files[0].stem, Table(frame, label, 1), None, Table(pl.DataFrame(side), label, 1))


def _events(table: Table, items: _Items, chosen: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """User and item of every choice; of a history those that the user has not `chosen` yet."""
    for number, row in enumerate(table.frame.iter_rows(named=True), table.first):
        user, target = row["user_id"], row["item_id"].strip()
        history = IDS.findall(row["history_item_id"] or "")
        codes = SIDS.findall(row["history_item_sid"] or "")
        if len(history) != len(codes):
            found = f"line {number} has {len(history)} ids and {len(codes)} semantic IDs"
            raise DataError(f"{table.label} was to be read", found, "Give one of each an item")
        for item, own in zip(history, codes, strict=True):
            items.add(item, own)
        items.add(target, row["item_sid"].strip(), row.get("item_title") or "")
        known = chosen.setdefault(user, set())
        yield from ((user, item) for item in dict.fromkeys(history) if item not in known)
        yield user, target
        known |= {*history, target}


def _lines(file: Path) -> list[str]:
    """Those of the items' list beside the rows, where there is one."""
    info = file.parents[1] / "info" / f"{file.stem}.txt"
    if file.parent.name not in PARTS or not info.is_file():
        return []
    return [line for line in read_text(info, "utf-8").decode().split("\n") if line.count("\t") > 1]


def _about(file: Path, ids: list[str]) -> dict[str, list[str]]:
    """Categories and brand of every item, where the items' file has them as texts."""
    index = sorted((file.parents[1] / "index").glob("*.item.json"))
    own = [each for each in index if file.stem.startswith(each.name.removesuffix(".item.json"))]
    if file.parent.name not in PARTS or not own:
        return {}
    known = read_json(own[0], dict[str, dict[str, Any]])
    found = {name: [str(known.get(i, {}).get(name) or "") for i in ids] for name in ABOUT}
    return {name: values for name, values in found.items() if any(values)}
