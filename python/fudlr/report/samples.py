"""Which training samples, items and users cause the bias, as far as the mask removed them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import polars as pl

from fudlr.report.data import ACCURACY, INFLUENCE, ReportData, number
from fudlr.report.numbers import decimals, figure, label, power, share

TOP_SAMPLES = 20
TOP_GROUPS = 10
HISTORY_SHOWN = 4


class Column(NamedTuple):
    """An influence column in a unit that needs no zeros: three digits for the largest."""

    name: str
    label: str
    exponent: int
    places: int

    @property
    def unit(self) -> str:
        """The unit as text, such as `× 10⁻³`; empty for 1."""
        return f"× 10{power(self.exponent)}" if self.exponent else ""

    def text(self, value: Any) -> str:
        """A value in the column's unit."""
        known = number(value)
        return figure(known if known is None else known / 10.0**self.exponent, self.places)


class GroupTable(NamedTuple):
    """Removed samples by item or user; the influence is the sum over their removed samples."""

    title: str
    heading: str
    influence: Column | None
    rows: list[dict[str, Any]]


def influence_columns(data: ReportData) -> list[Column]:
    """The influence columns, each in the power of ten that suits its largest removed value."""
    return [_column(name, data.removed[INFLUENCE + name]) for name in data.influences]


def _column(name: str, values: pl.Series) -> Column:
    known = values.cast(pl.Float64).drop_nulls().drop_nans()
    largest = number(known.abs().max()) or 0.0
    exponent = min(3 * math.floor(math.log10(largest) / 3), 0) if largest > 0 else 0
    shown = "Validation loss" if name == ACCURACY else label(name)
    return Column(name, shown, exponent, decimals(largest / 10.0**exponent, 3))


def top_samples(data: ReportData, columns: list[Column]) -> Iterator[dict[str, Any]]:
    """The removed samples with the lowest scores: those that the objective most wants gone."""
    removed = data.removed
    if "score" in removed.columns:
        removed = removed.sort("score", nulls_last=True)
    for row in removed.head(TOP_SAMPLES).iter_rows(named=True):
        influences = [column.text(row[INFLUENCE + column.name]) for column in columns]
        target = row.get("target_title", row.get("target"))
        history = _history(row.get("history"))
        yield {**row, "target": target, "history": history, "influences": influences}


def group_tables(data: ReportData) -> Iterator[GroupTable]:
    """Items and users with the most removed samples."""
    titled = "target_title" if "target_title" in data.mask.columns else "target"
    for key, heading, of in ((titled, "Item", "Target items"), ("user_id", "User", "Users")):
        if key in data.mask.columns and not data.removed.is_empty():
            yield _grouped(data, key, heading, f"{of} with the most removed samples")


def _grouped(data: ReportData, key: str, heading: str, title: str) -> GroupTable:
    metric = next(iter(data.influences), None)
    influence = pl.lit(None) if metric is None else pl.col(INFLUENCE + metric).sum()
    own = data.mask.group_by(key).agg(pl.len().alias("own"))
    table = (
        data.removed.group_by(key)
        .agg(pl.len().alias("removed"), influence.alias("influence"))
        .join(own, on=key, nulls_equal=True)
        .sort(["removed", "influence", key], descending=[True, False, False], nulls_last=True)
        .head(TOP_GROUPS)
    )
    column = None if metric is None else _column(metric, table["influence"])
    rows = [
        {
            "name": row[key],
            "removed": row["removed"],
            "share_of_removed": share(row["removed"] / data.removed.height),
            "share_of_own": f"{share(row['removed'] / row['own'])} of {row['own']:,}",
            "influence": "" if column is None else column.text(row["influence"]),
        }
        for row in table.iter_rows(named=True)
    ]
    return GroupTable(title, heading, column, rows)


def _history(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    items = ["" if item is None else str(item) for item in value]
    earlier = len(items) - HISTORY_SHOWN
    shown = ", ".join(items[-HISTORY_SHOWN:])
    return f"… {earlier} earlier, {shown}" if earlier > 0 else shown
