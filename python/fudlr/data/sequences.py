"""Sequence files: a line a user, `user item item ...`, oldest first, as for LightGCN or SASRec.

They hold no times; the order in a line, and of a user's lines, stands for it.
"""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.build import Tables
from fudlr.data.columns import roles
from fudlr.data.text import Table, part_files, read_text, warn

LINE = re.compile(rb"[^\s,;|\":{}\[\]]+([ \t][^\s,;|\":{}\[\]]+)*[ \t]*")
TABLES = (3, 4)
"""Numbers in every line that mean user, item, rating and time."""


def is_sequences(head: bytes) -> bool:
    """Whether the first lines of a file are ids with spaces between them, and no header nor the
    columns of a table."""
    lines = head.replace(b"\r\n", b"\n").split(b"\n")
    lines = [line for line in (lines[:-1] or lines) if line.strip()]
    sizes = {len(line.split()) for line in lines}
    table = len(lines) > 1 and len(sizes) == 1 and sizes <= {*TABLES}
    if max(sizes, default=0) < 2 or table:
        return False
    names = lines[0].decode(errors="replace").split()
    return all(LINE.fullmatch(line) for line in lines) and not roles(names, {}) and any(
        character.isdigit() for character in names[-1]
    )  # fmt: skip


def sequence_tables(path: Path) -> Tables:
    """Read the lines of one file, or of a folder's train, valid and test one after the other."""
    lines = [
        line.split()
        for file in part_files(path)
        for line in read_text(file, "utf-8").decode().split("\n")
    ]
    pairs = [(user, item) for user, *chosen in filter(None, lines) for item in chosen]
    if not pairs:
        raise DataError(
            f"sequences were to be read from {path}",
            "no line has a user and an item",
            "Write a line a user: its id and its items, with spaces between",
        )
    told = "sequences have no times: the order of a line's items, and of a user's lines, is taken"
    warn(f"{path.stem}: {told}", "no_times")
    if bare := sum(len(line) == 1 for line in lines):
        text = f"{path.stem}: {bare} lines have a user and no item; they are left out"
        warn(text, "unread_rows", bare)
    frame = pl.DataFrame(pairs, ["user_id", "item_id"], orient="row").with_row_index("time")
    return Tables(path.stem, Table(frame, str(path), 1))
