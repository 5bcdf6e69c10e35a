"""Plots of the report: the trade-off curve, changes, and the distribution of the scores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fudlr.report.data import ReportData, number, section
from fudlr.report.numbers import figure, label, share
from fudlr.report.rows import ACCURACY_METRICS, MetricRow, objective_metrics
from fudlr.report.svg import BLUE, INK, ORANGE, PALE, Plot, canvas, legend_above, to_svg

_KINDS = {
    "predicted": ("o--", BLUE, "predicted (update)"),
    "measured": ("s-", ORANGE, "measured (retrained)"),
}


class _Point(NamedTuple):
    kind: str
    budget: float
    accuracy: float
    metric: float


def tradeoffs(data: ReportData) -> Iterator[Plot]:
    """One plot for each metric of the objective that the curve knows."""
    # Gaps between groups on lists are mostly noise; their catalogue twin has the plain name.
    for metric in (min(keys, key=len) for keys in objective_metrics(data.summary)):
        for accuracy in _accuracies(data, metric):
            points = sorted(_points(data, accuracy, metric), key=lambda point: point[:2])
            if points:
                yield _tradeoff(data, accuracy, metric, points)
                break


def _accuracies(data: ReportData, metric: str) -> list[str]:
    """The accuracy metrics that the curve has, the preferred one first."""
    known = {name for point in data.curve for kind in _KINDS for name in section(point, kind)}
    names = sorted(known - {metric})
    return [n for wanted in ACCURACY_METRICS for n in names if n.partition("@")[0] == wanted]


def _points(data: ReportData, accuracy: str, metric: str) -> Iterator[_Point]:
    for point in data.curve:
        for kind in _KINDS:
            x, y = (number(section(point, kind).get(name)) for name in (accuracy, metric))
            if x is not None and y is not None:
                yield _Point(kind, float(point["budget"]), x, y)


def _tradeoff(data: ReportData, accuracy: str, metric: str, points: list[_Point]) -> Plot:
    with canvas(3.5) as (drawing, axes):
        x, y = (number(section(data.summary, "before").get(name)) for name in (accuracy, metric))
        if x is not None and y is not None:
            axes.plot(x, y, "D", color=INK, label="before", linestyle="none")
        for kind, (style, colour, word) in _KINDS.items():
            line = [(p.accuracy, p.metric) for p in points if p.kind == kind]
            if line:
                xs, ys = zip(*line, strict=True)
                axes.plot(xs, ys, style, color=colour, markersize=5, linewidth=1.4, label=word)
        _draw_budgets(data, axes, points)
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


def _draw_budgets(data: ReportData, axes: Axes, points: list[_Point]) -> None:
    """Each point's budget beside it, and a ring around the chosen one."""
    chosen = number(section(data.summary, "config", "debias").get("budget"))
    ring: dict[str, Any] = {"markersize": 12, "fillstyle": "none", "color": INK}
    name: str | None = "chosen budget"
    for point in points:
        if chosen is not None and abs(point.budget - chosen) < 1e-9:
            axes.plot(point.accuracy, point.metric, "o", label=name, **ring)
            name = None  # one legend entry for both rings
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


def changes(rows: Sequence[MetricRow]) -> Iterator[Plot]:
    """Bars of relative change, the update beside retraining, of lists and losses."""
    shown = [row for row in rows if row.change.value is not None and row.kind != "catalogue"]
    if not shown:
        return
    series = [("update", BLUE, [row.change for row in shown])]
    if any(row.retrained_change.value is not None for row in shown):
        series.append(("retrained", ORANGE, [row.retrained_change for row in shown]))
    height = 0.76 / len(series)
    with canvas(0.9 + (0.16 + 0.13 * len(series)) * len(shown)) as (drawing, axes):
        for order, (name, colour, cells) in enumerate(series):
            at = np.arange(len(cells)) + (order - (len(series) - 1) / 2) * height
            widths = [np.nan if cell.value is None else 100 * cell.value for cell in cells]
            axes.barh(at, widths, height * 0.9, color=colour, label=name)
            for place, cell in zip(at, cells, strict=True):
                if cell.interval is not None:
                    ends = [100 * end for end in cell.interval]
                    axes.plot(ends, [place] * 2, color=INK, linewidth=1.1)
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
    yield Plot("Relative change of each metric", svg, caption)


def scores(data: ReportData) -> Iterator[Plot]:
    """Histogram of the samples' scores, the removed ones coloured, with the threshold."""
    if "score" not in data.mask.columns:
        return
    values = data.mask["score"].cast(float).to_numpy()
    gone = data.mask["mask"].cast(float).to_numpy() > 0
    known = np.isfinite(values)
    values, gone = values[known], gone[known]
    if len(values) == 0:
        return
    words = f"Scores of {len(values):,} samples, {int(gone.sum()):,} removed"
    with canvas(2.7) as (drawing, axes):
        low, high = np.quantile(values, [0.001, 0.999])
        edges = np.linspace(low, high if high > low else low + 1, 61).tolist()
        inside = np.clip(values, low, high)
        axes.hist(inside, edges, color=PALE, label="kept", histtype="stepfilled")
        axes.hist(inside[gone], edges, color=ORANGE, label="removed", histtype="stepfilled")
        if gone.any():
            threshold = float(values[gone].max())
            axes.axvline(threshold, color=INK, linewidth=1.2, linestyle="--", label="threshold")
            words += f", threshold {figure(threshold)}"
        axes.set_xlabel("score (lower: removing it helps the objective more)")
        axes.set_ylabel("samples")
        legend_above(axes, columns=3)
        svg = to_svg(drawing, "scores", words)
    caption = "The outermost 0.1% at each end are drawn at the edge."
    yield Plot("Where the line was drawn: scores of the samples", svg, caption)
