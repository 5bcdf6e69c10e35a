"""Rows of the metric table: before, after, retrained and held out, and which of them matter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fudlr.metrics import METRICS
from fudlr.report.data import number, pair, section
from fudlr.report.numbers import figure, label, relative, signed, span

Verdict = Literal["better", "worse", "within noise", "unchanged", ""]
Kind = Literal["lists", "catalogue", "other"]
ACCURACY_METRICS = ("ndcg", "hr", "mrr", "auc", "val_loss", "test_loss")


@dataclass(frozen=True)
class Cell:
    """A value as text, with its interval where it has one."""

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
class Change:
    """A relative change, and whether it is for the better."""

    value: float | None = None
    interval: tuple[float, float] | None = None
    verdict: Verdict = ""

    @property
    def text(self) -> str:
        """The change in per cent with its sign, or "not measured"."""
        return signed(self.value)

    @property
    def span(self) -> str:
        """The interval of the change in per cent, or nothing."""
        return "" if self.interval is None else " to ".join(signed(end) for end in self.interval)


@dataclass(frozen=True)
class MetricRow:
    """One metric, all that is known of it."""

    name: str
    label: str
    kind: Kind
    direction: str
    before: Cell
    predicted: Cell
    after: Cell
    change: Change
    retrained: Cell
    retrained_change: Change
    heldout_before: Cell
    heldout_after: Cell
    heldout_change: Change
    null: Cell
    null_p: float | None
    popular: Cell

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
    names = list(section(summary, "before"))
    for part in ("after", "retrained"):
        names += [name for name in section(summary, part) if name not in names]
    return [_row(summary, name) for name in names]


def _row(summary: Mapping[str, Any], name: str) -> MetricRow:
    heldout = section(summary, "heldout")
    direction = str(section(summary, "directions").get(name, ""))
    null = section(summary, "null").get(name)
    spread = null if isinstance(null, Mapping) else {"mean": null}
    shown, of = label(name), kind(summary, name)
    return MetricRow(
        name=name,
        label=shown if of != "catalogue" or name.endswith("_soft") else f"{shown} (catalogue)",
        kind=of,
        direction=direction,
        before=_cell(summary, "before", name),
        predicted=_cell(summary, "predicted", name),
        after=_cell(summary, "after", name),
        change=_change(summary, "after", "change", name, direction),
        retrained=_cell(summary, "retrained", name),
        retrained_change=_change(summary, "retrained", "retrained_change", name, direction),
        heldout_before=_cell(heldout, "before", name),
        heldout_after=_cell(heldout, "after", name),
        heldout_change=_change(heldout, "after", "change", name, direction),
        null=Cell(number(spread.get("mean")), pair(spread.get("interval"))),
        null_p=number(spread.get("p")),
        popular=_cell(summary, "most_popular", name),
    )


def _cell(parent: Mapping[str, Any], part: str, name: str) -> Cell:
    interval = section(section(parent, "intervals"), part).get(name)
    return Cell(number(section(parent, part).get(name)), pair(interval))


def _change(
    parent: Mapping[str, Any], part: str, interval_name: str, name: str, direction: str
) -> Change:
    before = number(section(parent, "before").get(name))
    after = number(section(parent, part).get(name))
    absolute = pair(section(section(parent, "intervals"), interval_name).get(name))
    value = relative(before, after)
    if before and absolute is not None:
        interval = (absolute[0] / abs(before), absolute[1] / abs(before))
    else:
        interval = None
    return Change(value, interval, _verdict(value, interval, direction))


def _verdict(value: float | None, interval: tuple[float, float] | None, direction: str) -> Verdict:
    if value is None:
        return ""
    if interval is not None and interval[0] <= 0 <= interval[1]:
        return "within noise"
    if value == 0:
        return "unchanged"
    if direction not in {"lower", "higher"}:
        return ""
    return "better" if (value < 0) == (direction == "lower") else "worse"


def kind(summary: Mapping[str, Any], name: str) -> Kind:
    """Whether a figure is of the lists, of its metric's twin on the catalogue, or of neither."""
    metric = METRICS.get(name.partition("@")[0].removesuffix("_soft"))
    if metric is None:
        return "other"
    return "lists" if name == metric.hard_key(_k(summary)) else "catalogue"


def _k(summary: Mapping[str, Any]) -> int:
    named = number(section(section(summary, "config"), "data").get("k"))
    if named is not None:
        return int(named)
    ks = (name.partition("@")[2] for name in section(summary, "before"))
    return next((int(k) for k in ks if k.isdecimal()), 10)


def objective_metrics(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """For each metric of the objective its names in the files: of the lists, of the catalogue.

    Without a configuration it is the first figure.
    """
    known = section(summary, "before")
    debias = section(section(summary, "config"), "debias")
    found = []
    for word in dict.fromkeys(re.findall(r"[a-z_]\w*", str(debias.get("objective", "")))):
        metric = METRICS.get(word)
        keys = (word,) if metric is None else (metric.hard_key(_k(summary)), metric.soft_key)
        found.append(tuple(key for key in dict.fromkeys(keys) if key in known))
    return [keys for keys in found if keys] or [(name,) for name in list(known)[:1]]


def accuracy_metric(names: Mapping[str, Any]) -> str | None:
    """The metric that tells the cost: ranking accuracy where it is known, else a loss."""
    for wanted in ACCURACY_METRICS:
        for name in names:
            if name.partition("@")[0] == wanted and number(names[name]) is not None:
                return name
    return None


def key_rows(summary: Mapping[str, Any]) -> list[MetricRow]:
    """What the first screen shows: the steered metrics, lists and catalogue, then accuracy."""
    rows = {row.name: row for row in metric_rows(summary)}
    names = [name for keys in objective_metrics(summary) for name in keys]
    paid = accuracy_metric(section(summary, "before"))
    return [rows[name] for name in dict.fromkeys([*names, *([paid] if paid else [])])]


def worse(summary: Mapping[str, Any]) -> list[MetricRow]:
    """What got worse beyond its noise, by the change to go by, of lists and of losses."""
    rows = metric_rows(summary)
    return [
        row
        for row in rows
        if row.kind != "catalogue" and row.judged.verdict == "worse" and row.judged.interval
    ]
