"""Plots of the report: the trade-off curve, changes, and the distribution of the scores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fudlr.report.data import ReportData, number, section
from fudlr.report.numbers import figure, label, share
from fudlr.report.rows import ACCURACY_METRICS, Change, MetricRow, objective_metrics
from fudlr.report.svg import BLUE, INK, ORANGE, PALE, Plot, canvas, legend_above, to_svg

_KINDS = {"predicted": ("o--", BLUE), "measured": ("s-", ORANGE)}
_WORDS = {"predicted": "predicted (update)", "measured": "measured (retrained)"}


@dataclass(frozen=True)
class _Point:
    kind: str
    budget: float
    accuracy: float
    metric: float


def tradeoffs(data: ReportData) -> list[Plot]:
    """One plot for each metric of the objective that the curve knows."""
    # Gaps between groups on lists are mostly noise; their catalogue twin has the plain name.
    names = [min(keys, key=len) for keys in objective_metrics(data.summary)]
    plots = [_tradeoff(data, name) for name in names]
    return [plot for plot in plots if plot is not None]


def _tradeoff(data: ReportData, metric: str) -> Plot | None:
    choice = _axis_and_points(data, metric)
    if choice is None:
        return None
    accuracy, points = choice
    with canvas(3.5) as (drawing, axes):
        _draw_before(axes, section(data.summary, "before"), accuracy, metric)
        for kind, (style, colour) in _KINDS.items():
            line = [point for point in points if point.kind == kind]
            if line:
                xs, ys = [p.accuracy for p in line], [p.metric for p in line]
                axes.plot(
                    xs, ys, style, color=colour, markersize=5, linewidth=1.4, label=_WORDS[kind]
                )
        _draw_chosen(axes, data.summary, points)
        _draw_budgets(axes, points)
        axes.margins(0.14)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(_axis_label(data, accuracy))
        axes.set_ylabel(_axis_label(data, metric))
        legend_above(axes, columns=2)
        words = "; ".join(
            f"budget {share(p.budget)} {p.kind}: {label(metric)} {figure(p.metric)}, "
            f"{label(accuracy)} {figure(p.accuracy)}"
            for p in points
        )
        name = "tradeoff-" + re.sub(r"[^a-z0-9]+", "-", metric.lower())
        svg = to_svg(drawing, name, f"Trade-off over budgets: {words}")
    caption = "Each point is a budget: the largest share of training samples that may go."
    users = max((int(point.get("users") or 0) for point in data.curve), default=0)
    if users:
        caption += f" Changes are those of {users:,} users."
    return Plot(f"{label(metric)} against {label(accuracy)}, by budget", svg, caption)


def _axis_and_points(data: ReportData, metric: str) -> tuple[str, list[_Point]] | None:
    """The preferred accuracy metric that the curve has values of, with its points by budget."""
    names = sorted({name for point in data.curve for name in _values(point)} - {metric})
    for wanted in ACCURACY_METRICS:
        for accuracy in names:
            if accuracy.partition("@")[0] == wanted:
                points = _points(data, accuracy, metric)
                if points:
                    return accuracy, points
    return None


def _values(point: Mapping[str, Any]) -> set[str]:
    return {name for kind in _KINDS for name in section(point, kind)}


def _points(data: ReportData, accuracy: str, metric: str) -> list[_Point]:
    points = []
    for point in data.curve:
        for kind in _KINDS:
            x = number(section(point, kind).get(accuracy))
            y = number(section(point, kind).get(metric))
            if x is not None and y is not None:
                points.append(_Point(kind, float(point["budget"]), x, y))
    return sorted(points, key=lambda point: (point.kind, point.budget))


def _draw_before(axes: Axes, before: Mapping[str, Any], accuracy: str, metric: str) -> None:
    x, y = number(before.get(accuracy)), number(before.get(metric))
    if x is not None and y is not None:
        axes.plot(x, y, "D", color=INK, label="before", linestyle="none")


def _draw_chosen(axes: Axes, summary: Mapping[str, Any], points: list[_Point]) -> None:
    chosen = number(section(section(summary, "config"), "debias").get("budget"))
    ring: str | None = "chosen budget"
    for point in points:
        if chosen is not None and abs(point.budget - chosen) < 1e-9:
            axes.plot(
                point.accuracy,
                point.metric,
                "o",
                markersize=12,
                fillstyle="none",
                color=INK,
                label=ring,
            )
            ring = None  # one legend entry for both rings


def _draw_budgets(axes: Axes, points: list[_Point]) -> None:
    for point in points:
        side = 1 if point.kind == "measured" else -1  # the two lines often run close together
        axes.annotate(
            share(point.budget),
            (point.accuracy, point.metric),
            (8 * side, 3 * side),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=9,
            color=_KINDS[point.kind][1],
        )


def _axis_label(data: ReportData, metric: str) -> str:
    direction = section(data.summary, "directions").get(metric)
    return f"{label(metric)} ({direction} is better)" if direction else label(metric)


def changes(rows: Sequence[MetricRow]) -> Plot | None:
    """Bars of relative change, the update beside retraining, of lists and losses."""
    shown = [row for row in rows if row.change.value is not None and row.kind != "catalogue"]
    if not shown:
        return None
    series = [("update", BLUE, [row.change for row in shown])]
    if any(row.retrained_change.value is not None for row in shown):
        series.append(("retrained", ORANGE, [row.retrained_change for row in shown]))
    height = 0.76 / len(series)
    with canvas(0.9 + (0.16 + 0.13 * len(series)) * len(shown)) as (drawing, axes):
        for order, (name, colour, cells) in enumerate(series):
            offset = (order - (len(series) - 1) / 2) * height
            _bars(axes, cells, offset=offset, height=height * 0.9, colour=colour, name=name)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(shown)), [f"{row.label} {row.arrow}" for row in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("change against before, %")
        if len(series) > 1:
            legend_above(axes, columns=2)
        words = "; ".join(
            f"{row.label} {row.change.text}, retrained {row.retrained_change.text}" for row in shown
        )
        svg = to_svg(drawing, "changes", f"Relative changes: {words}")
    caption = "The arrow says which direction is better; a dark line is the 95% interval."
    return Plot("Relative change of each metric", svg, caption)


def _bars(
    axes: Axes, cells: Sequence[Change], *, offset: float, height: float, colour: str, name: str
) -> None:
    known = [(index, cell) for index, cell in enumerate(cells) if cell.value is not None]
    axes.barh(
        [index + offset for index, _ in known],
        [100 * (cell.value or 0.0) for _, cell in known],
        height,
        color=colour,
        label=name,
    )
    for index, cell in known:
        if cell.interval is not None:
            ends = [100 * end for end in cell.interval]
            axes.plot(ends, [index + offset] * 2, color=INK, linewidth=1.1)


def scores(data: ReportData) -> Plot | None:
    """Histogram of the samples' scores, the removed ones coloured, with the threshold."""
    if "score" not in data.mask.columns:
        return None
    values = data.mask["score"].cast(float).to_numpy()
    gone = data.mask["mask"].cast(float).to_numpy() > 0
    known = np.isfinite(values)
    values, gone = values[known], gone[known]
    if len(values) == 0:
        return None
    with canvas(2.7) as (drawing, axes):
        low, high = np.quantile(values, [0.001, 0.999])
        edges = np.linspace(low, high if high > low else low + 1, 61).tolist()
        inside = np.clip(values, low, high)
        axes.hist(inside, edges, color=PALE, label="kept", histtype="stepfilled")
        axes.hist(inside[gone], edges, color=ORANGE, label="removed", histtype="stepfilled")
        threshold = float(values[gone].max()) if gone.any() else None
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1.2, linestyle="--", label="threshold")
        axes.set_xlabel("score (lower: removing it helps the objective more)")
        axes.set_ylabel("samples")
        legend_above(axes, columns=3)
        words = f"Scores of {len(values):,} samples, {int(gone.sum()):,} removed"
        if threshold is not None:
            words += f", threshold {figure(threshold)}"
        svg = to_svg(drawing, "scores", words)
    caption = "The outermost 0.1% at each end are drawn at the edge."
    return Plot("Where the line was drawn: scores of the samples", svg, caption)
