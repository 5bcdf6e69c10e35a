"""What data hold, and what will become of them, before anything long starts."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fudlr.common import terminal
from fudlr.common.errors import DataError
from fudlr.common.memory import MATRICES, scores_bytes
from fudlr.config import DataConfig
from fudlr.data.candidates import candidates_of
from fudlr.data.groups import SMALL_GROUP, UNKNOWN, count_groups, groups_or_none
from fudlr.data.interactions import DataWarning, Interactions
from fudlr.data.splits import make_split

SHOWN_GROUPS = 12
# Numbers in this range are taken for seconds since 1970 (1980 to 2100) and shown as dates too; so
# are milliseconds, microseconds and nanoseconds.
SECONDS = (315_532_800, 4_102_444_800)


@dataclass(frozen=True)
class GroupSizes:
    """A side column as groups."""

    column: str  # such as `users.gender`
    groups: int  # numbers are cut at their quartiles first
    sizes: dict[str, int]  # users or items of the largest ones, the largest first
    small: int  # groups of fewer than ten users, which `user_groups` leaves out; 0 for items
    unknown: int  # users or items in no group


@dataclass(frozen=True)
class DataCheck:
    """What `fudlr data check` reports; counts throughout."""

    users: int  # with interactions
    items: int  # the catalogue
    interactions: int  # after repeats were dropped
    time: tuple[int, int]  # first and last, in the unit of the source
    ties: int  # interactions at the same time as the same user's one before; they fall by item
    repeats: int  # interactions of a user with an item once more, dropped
    missing_user_ids: int  # interactions of users whose id is unknown or made up by the reader
    idle_items: int  # that nobody chose
    no_popularity: int | None  # items without a count in the training data; None without a split
    title_twins: int  # items whose title was another's too, told apart by id
    left_out: int  # users too short for the split
    samples: dict[str, int]  # of `train`, `valid` and `test`; empty where no split is possible
    scores_bytes: int  # of the larger part's scores as a matrix, prompts x items; factors need none
    trained: float  # share of the interactions that are training samples
    groups: list[GroupSizes]  # one a side column
    warnings: list[str]  # what reading and splitting said
    problems: list[str]  # what makes training impossible

    def to_plain(self) -> dict[str, Any]:
        """The record as dictionaries, lists and scalars."""
        return dataclasses.asdict(self)


def _groups(table: pl.DataFrame, what: str) -> list[GroupSizes]:
    found = []
    for column in table.columns[1:]:
        if column == "title":
            continue
        sizes, unknown = count_groups(table[column])
        small = sum(n < SMALL_GROUP for n in sizes.values()) if what == "users" else 0
        most = dict(list(sizes.items())[:SHOWN_GROUPS])
        found.append(GroupSizes(f"{what}.{column}", len(sizes), most, small, unknown))
    return found


def check_data(read: Callable[[], Interactions], config: DataConfig | None = None) -> DataCheck:
    """Read data, try the split on them, and count what is there.

    Args:
        read: the reader, called once; its warnings become part of the record.
        config: says how they are split; the defaults where None.

    Raises:
        FudlrError: the data cannot be read. Data that can be read but not split have `problems`.
    """
    config = config or DataConfig()
    problems: list[str] = []
    split, samples = None, {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        data = read()
        groups_or_none(data, config.user_group, config.item_group)
        try:
            split = make_split(data, config)
            samples = {part: len(getattr(split, part)) for part in ("train", "valid", "test")}
            if config.candidates is not None:
                candidates_of(split.test, config.candidates)
        except DataError as error:
            problems.append(str(error))
    said = [w.message for w in caught if isinstance(w.message, DataWarning)]
    unknown = data.users["user_id"].str.strip_chars().str.to_lowercase().is_in(UNKNOWN)
    missing = int(unknown.to_numpy()[data.user].sum())
    twin = pl.col("title").str.ends_with(pl.lit(" [") + pl.col("item_id") + "]")
    return DataCheck(
        users=data.n_users,
        items=data.n_items,
        interactions=len(data),
        time=(int(data.time.min()), int(data.time.max())),
        ties=int(((np.diff(data.user) == 0) & (np.diff(data.time) == 0)).sum()),
        repeats=sum(w.count for w in said if w.kind == "repeats"),
        missing_user_ids=len(data) if any(w.kind == "no_user_id" for w in said) else missing,
        idle_items=data.n_items - np.unique(data.item).size,
        no_popularity=int((split.popularity == 0).sum()) if split else None,
        title_twins=int(data.items.select(twin.sum()).item()),
        left_out=split.left_out if split else data.n_users,
        samples=samples,
        scores_bytes=scores_bytes(max(samples.get(p, 0) for p in ("valid", "test")), data.n_items),
        trained=len(split.train) / len(data) if split else 0.0,
        groups=_groups(data.users, "users") + _groups(data.items, "items"),
        warnings=[str(w) for w in said],
        problems=problems,
    )


def _date(time: int) -> str:
    for unit in (1, 10**3, 10**6, 10**9):
        if SECONDS[0] * unit <= time <= SECONDS[1] * unit:
            return f"{time} ({datetime.fromtimestamp(time // unit, UTC):%Y-%m-%d %H:%M})"
    return str(time)


def print_check(check: DataCheck, console: Console | None = None) -> None:
    """Show the record as tables; texts of the data are never read as markup."""
    console = console or terminal.console()
    facts = Table(show_header=False, box=None)
    rows = {
        "users": check.users,
        "items": check.items,
        "interactions": check.interactions,
        "first time": _date(check.time[0]),
        "last time": _date(check.time[1]),
        "ties in time": check.ties,
        "repeats dropped": check.repeats,
        "without user id": check.missing_user_ids,
        "items nobody chose": check.idle_items,
        "items without popularity": "no split" if not check.samples else check.no_popularity,
        "title twins": check.title_twins,
        "users left out by the split": check.left_out,
        **{f"{part} samples": n for part, n in check.samples.items()},
        "interactions trained on": f"{check.trained:.1%}",
        "scores as matrices": f"{MATRICES * check.scores_bytes / 2**30:.2f} GiB",
    }
    for name, value in rows.items():
        facts.add_row(name, str(value))
    console.print(facts)
    if check.groups:
        table = Table("column", "groups", "sizes", "small", "unknown", box=None)
        for group in check.groups:
            sizes = ", ".join(f"{label[:40]} {n}" for label, n in group.sizes.items())
            more = ", …" if group.groups > len(group.sizes) else ""
            numbers = (str(group.small), str(group.unknown))
            table.add_row(Text(group.column), str(group.groups), Text(sizes + more), *numbers)
        console.print(table)
    for kind, texts in (("warning", check.warnings), ("problem", check.problems)):
        for text in texts:
            console.print(f"{kind}: {text}", markup=False, soft_wrap=True)
