"""Sequence files: a line a user, `user item item ...`, oldest first, as for LightGCN or SASRec.

They hold no times; the order in a line, and of a user's lines, stands for it.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import polars as pl

from fudlr.common.errors import DataError
from fudlr.data.build import Table, Tables
from fudlr.data.columns import roles
from fudlr.data.interactions import DataWarning
from fudlr.data.text import decode, read_bytes

PARTS = ("train", "valid", "val", "test")  # one after the other in time
LINE = re.compile(rb"[^\s,;|\":{}\[\]]+( [^\s,;|\":{}\[\]]+)* *")


def sequence_files(path: Path, name: str | None = None) -> list[Path]:
    """The file `path`; or in a folder the one called `name`, or its train, valid and test."""
    if not path.is_dir():
        return [path]
    stems = (name,) if name else PARTS
    found = [path / f"{stem}{ending}" for stem in stems for ending in (".txt", "", ".dat")]
    return [file for file in found if file.is_file()]


def is_sequences(head: bytes) -> bool:
    """Whether the first lines of a file are ids with spaces between them, and no header."""
    lines = head.replace(b"\r\n", b"\n").split(b"\n")
    lines = [line for line in (lines[:-1] or lines)[:20] if line.strip()]
    if not lines or not any(b" " in line.strip() for line in lines):
        return False
    names = lines[0].decode(errors="replace").split(" ")
    return all(LINE.fullmatch(line) for line in lines) and not roles(names, {}) and any(
        character.isdigit() for character in names[-1]
    )  # fmt: skip


def sequence_tables(path: Path, name: str | None = None) -> Tables:
    """Read the lines of one file, or of a folder's train, valid and test one after the other.

    Raises:
        DataError: no such file, or no line with an item.
    """
    files = sequence_files(path, name)
    users: list[str] = []
    items: list[str] = []
    bare = 0
    for file in files:
        for line in decode(read_bytes(file), str(file), "utf-8").decode().split("\n"):
            user, *chosen = line.split() or [""]
            bare += bool(user) and not chosen
            users += [user] * len(chosen)
            items += chosen
    if not users:
        raise DataError(
            f"sequences were to be read from {path}",
            "no line has a user and an item" if files else "there is no such file",
            "Write a line a user: its id and its items, with spaces between",
        )
    told = "sequences have no times: the order of a line's items, and of a user's lines, is taken"
    warnings.warn(DataWarning(f"{path.stem}: {told}", "no_times"), stacklevel=2)
    if bare:
        text = f"{path.stem}: {bare} lines have a user and no item; they are left out"
        warnings.warn(DataWarning(text, "unread_rows", bare), stacklevel=2)
    frame = pl.DataFrame(
        {"user_id": users, "item_id": items, "time": range(len(users))},
        schema={"user_id": pl.String, "item_id": pl.String, "time": pl.Int64},
    )
    return Tables(path.stem, Table(frame, str(path), 1))
