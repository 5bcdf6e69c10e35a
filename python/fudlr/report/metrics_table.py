"""Rows of the metric table: before, after and retrained, what they mean, and the headline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fudlr.common.progress import duration
from fudlr.report.cost import cost
from fudlr.report.data import ReportData, number, pair, section
from fudlr.report.numbers import figure, label, relative, share, signed, span

Verdict = Literal["better", "worse", "within noise", "unchanged", ""]
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
    description: str
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

    @property
    def arrow(self) -> str:
        """The direction that is better, as an arrow."""
        return {"lower": "↓", "higher": "↑"}.get(self.direction, "")


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
    return MetricRow(
        name=name,
        label=label(name),
        description=str(section(summary, "descriptions").get(name, "")),
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


def objective_metrics(summary: Mapping[str, Any]) -> list[str]:
    """The metrics that the configured objective names, in its order, as far as they were measured.

    `arp + 0.5*hellinger` names two. Without a configuration it is the first metric.
    """
    known = list(section(summary, "before"))
    debias = section(section(summary, "config"), "debias")
    words = re.findall(r"[a-z_][a-z0-9_@]*", str(debias.get("objective", "")))
    named = [word for word in dict.fromkeys(words) if word in known]
    return named or known[:1]


def accuracy_metric(names: Mapping[str, Any]) -> str | None:
    """The metric that tells the cost: ranking accuracy where it is known, else a loss."""
    for wanted in ACCURACY_METRICS:
        for name in names:
            if name.partition("@")[0] == wanted and number(names[name]) is not None:
                return name
    return None


def headline(data: ReportData) -> str:
    """One plain sentence: what changed, at what cost."""
    summary = data.summary
    rows = {row.name: row for row in metric_rows(summary)}
    removed, total = data.removed.height, data.mask.height
    if removed == 0:
        return f"Nothing was removed: all {total:,} training samples were kept."
    told = objective_metrics(summary)
    paid = accuracy_metric(section(summary, "before"))
    if paid is not None and paid not in told:
        told.append(paid)
    mode = section(summary, "steering").get("mode")
    sentence = f"Taking out {removed:,} of {total:,} training samples ({share(removed / total)}) "
    if mode is not None:
        sentence = f"Steering ({str(mode).replace('_', ' ')}), which is no removal of samples, "
    sentence += " and ".join(_movement(rows[name]) for name in told)
    spent = cost(summary)
    if spent is not None:
        share_of = f"{spent.share} of the time of {spent.word}" if spent.share else ""
        sentence += f", in {share_of or duration(spent.update)}"
    return sentence + "."


def _movement(row: MetricRow) -> str:
    change = row.change
    if change.value is None:
        return f"left {row.label} {change.text}"
    if signed(change.value).startswith("±"):
        return f"left {row.label} where it was"
    verb = "lowered" if change.value < 0 else "raised"
    verdict = f" ({change.verdict})" if change.verdict else ""
    return f"{verb} {row.label} by {change.text[1:]}{verdict}"
