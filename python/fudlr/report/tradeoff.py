"""The trade-off curve: an objective metric against accuracy, one point a budget."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from fudlr.report.data import ReportData, number, section
from fudlr.report.metrics_table import ACCURACY_METRICS, objective_metrics
from fudlr.report.numbers import figure, label, share
from fudlr.report.svg import BLUE, INK, ORANGE, Plot, canvas, legend_above, to_svg

_KINDS = {"predicted": ("o--", BLUE), "measured": ("s-", ORANGE)}
_WORDS = {"predicted": "predicted (closed form)", "measured": "measured (retrained)"}


@dataclass(frozen=True)
class _Point:
    kind: str
    budget: float
    accuracy: float
    metric: float


def tradeoffs(data: ReportData) -> list[Plot]:
    """One plot for each metric of the objective that the curve knows."""
    plots = [_tradeoff(data, metric) for metric in objective_metrics(data.summary)]
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
