"""Rows of the metric table: before, after, retrained and held out, and which of them matter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fudlr.metrics import METRICS
from fudlr.report.data import number, pair, section
from fudlr.report.numbers import figure, label, relative, signed, span

ACCURACY_METRICS = ("ndcg", "hr", "mrr", "auc", "val_loss", "test_loss")


@dataclass(frozen=True)
class Cell:
    """A value, with its interval where it has one."""

    value: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def text(self) -> str:
        """The value, or "not measured"."""
        return figure(self.value)

    @property
    def span(self) -> str:
        """The interval, or nothing."""
        return span(self.interval, self.value)


@dataclass(frozen=True)
class Change(Cell):
    """A relative change; `verdict` is better, worse, within noise, unchanged, or nothing."""

    verdict: str = ""

    @property
    def text(self) -> str:
        """The change in per cent with its sign, or "not measured"."""
        return signed(self.value)

    @property
    def span(self) -> str:
        """The interval of the change in per cent, or nothing."""
        return "" if self.interval is None else " to ".join(signed(end) for end in self.interval)


class MetricRow:
    """One metric, all that a summary knows of it; `kind` is lists, catalogue or other."""

    def __init__(self, summary: Mapping[str, Any], name: str) -> None:
        metric = METRICS.get(name.partition("@")[0].removesuffix("_soft"))
        self.name, self.label, self.kind = name, label(name), "other"
        if metric is not None:
            self.kind = "lists" if name == metric.hard_key(_k(summary)) else "catalogue"
        if self.kind == "catalogue" and not name.endswith("_soft"):
            self.label += " (catalogue)"
        self.direction = str(section(summary, "directions").get(name, ""))
        self.before = self._cell(summary, "before")
        self.predicted = self._cell(summary, "predicted")
        self.after = self._cell(summary, "after")
        self.change = self._change(summary, "after", "change")
        self.retrained = self._cell(summary, "retrained")
        self.retrained_change = self._change(summary, "retrained", "retrained_change")
        self.expected = self._ends(summary, section(summary, "expected").get(name))
        heldout, null = section(summary, "heldout"), section(summary, "null", name)
        self.heldout_before = self._cell(heldout, "before")
        self.heldout_after = self._cell(heldout, "after")
        self.heldout_change = self._change(heldout, "after", "change")
        self.null = Cell(number(null.get("mean")), pair(null.get("interval")))
        self.null_p = number(null.get("p"))
        self.popular = self._cell(summary, "most_popular")

    def _cell(self, of: Mapping[str, Any], part: str) -> Cell:
        interval = section(of, "intervals", part).get(self.name)
        return Cell(number(section(of, part).get(self.name)), pair(interval))

    def _change(self, of: Mapping[str, Any], part: str, interval: str) -> Change:
        value = relative(self._cell(of, "before").value, self._cell(of, part).value)
        around = self._ends(of, section(of, "intervals", interval).get(self.name))
        return Change(value, around, _verdict(value, around, self.direction))

    def _ends(self, of: Mapping[str, Any], ends: Any) -> tuple[float, float] | None:
        """An interval of a change, relative to the figure before."""
        found, before = pair(ends), self._cell(of, "before").value
        return (found[0] / abs(before), found[1] / abs(before)) if before and found else None

    @property
    def arrow(self) -> str:
        """The direction that is better, as an arrow."""
        return {"lower": "↓", "higher": "↑"}.get(self.direction, "")

    @property
    def judged(self) -> Change:
        """The change to go by: on held-out users where there are any."""
        return self.change if self.heldout_change.value is None else self.heldout_change


def metric_rows(summary: Mapping[str, Any]) -> list[MetricRow]:
    """A row for each metric named under `before`, `after` or `retrained`, in that order."""
    parts = ("before", "after", "retrained")
    names = dict.fromkeys(name for part in parts for name in section(summary, part))
    return [MetricRow(summary, name) for name in names]


def _verdict(value: float | None, interval: tuple[float, float] | None, direction: str) -> str:
    if value is None:
        return ""
    if interval is not None and interval[0] <= 0 <= interval[1]:
        return "within noise"
    if value == 0:
        return "unchanged"
    if direction not in {"lower", "higher"}:
        return ""
    return "better" if (value < 0) == (direction == "lower") else "worse"


def _k(summary: Mapping[str, Any]) -> int:
    named = number(section(summary, "config", "data").get("k"))
    if named is not None:
        return int(named)
    ks = (name.partition("@")[2] for name in section(summary, "before"))
    return next((int(k) for k in ks if k.isdecimal()), 10)


def objective_metrics(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """For each metric of the objective its names in the files: of the lists, of the catalogue.

    Without a configuration it is the first figure. Where samples were named, it is what the audit
    found of them.
    """
    if section(summary, "forget"):
        return [("removed_loss",), ("membership_auc",)]
    known = section(summary, "before")
    objective = str(section(summary, "config", "debias").get("objective", ""))
    found = []
    for word in dict.fromkeys(re.findall(r"[a-z_]\w*", objective)):
        metric = METRICS.get(word)
        keys = (word,) if metric is None else (metric.hard_key(_k(summary)), metric.soft_key)
        found.append(tuple(key for key in dict.fromkeys(keys) if key in known))
    return [keys for keys in found if keys] or [(name,) for name in list(known)[:1]]


def accuracy_metric(summary: Mapping[str, Any]) -> str | None:
    """The figure that tells the cost: ranking accuracy where it is known, else a loss."""
    names = section(summary, "before")
    known = [name for name in names if number(names[name]) is not None]
    found = (n for wanted in ACCURACY_METRICS for n in known if n.partition("@")[0] == wanted)
    return next(found, None)


def key_rows(summary: Mapping[str, Any], twins: bool = True) -> list[MetricRow]:
    """What the first screen shows: the steered metrics, lists and catalogue, then accuracy.

    Without `twins` each steered metric is there once, as users see it.
    """
    rows = {row.name: row for row in metric_rows(summary)}
    steered = objective_metrics(summary)
    names = [name for keys in steered for name in (keys if twins else keys[:1])]
    paid = accuracy_metric(summary)
    return [rows[name] for name in dict.fromkeys([*names, *([paid] if paid else [])])]


def worse(summary: Mapping[str, Any]) -> list[MetricRow]:
    """What got worse beyond its noise, by the change to go by, of lists and of losses."""
    rows = (row for row in metric_rows(summary) if row.kind != "catalogue")
    return [row for row in rows if row.judged.verdict == "worse" and row.judged.interval]
