"""Plots of the report that need no curve: changes, time, and the distribution of the scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from fudlr.common.progress import duration
from fudlr.report.cost import Cost
from fudlr.report.data import ReportData
from fudlr.report.metrics_table import Change, MetricRow
from fudlr.report.numbers import figure
from fudlr.report.svg import BLUE, INK, ORANGE, PALE, Plot, canvas, legend_above, to_svg


def changes(rows: Sequence[MetricRow]) -> Plot | None:
    """Bars of relative change, closed form beside retrained, one pair a metric."""
    shown = [row for row in rows if row.change.value is not None]
    if not shown:
        return None
    series = [("closed form", BLUE, [row.change for row in shown])]
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


def seconds(spent: Cost | None) -> Plot | None:
    """One bar for all stages of the update together, one for training."""
    if spent is None or not spent.training:
        return None
    bars = {"update": spent.update, spent.word: spent.training}
    with canvas(1.5) as (drawing, axes):
        axes.barh([0, 1], list(bars.values()), 0.62, color=[BLUE, ORANGE])
        axes.set_yticks([0, 1], list(bars))
        axes.set_ylim(1.5, -0.5)
        axes.set_xlim(0, 1.25 * max(bars.values()))
        axes.grid(visible=False, axis="y")
        for y, value in enumerate(bars.values()):
            axes.annotate(
                duration(value),
                (value, y),
                (6, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
        axes.set_xlabel("seconds")
        words = ", ".join(f"{name} {duration(value)}" for name, value in bars.items())
        svg = to_svg(drawing, "seconds", f"Time: {words}")
    return Plot(f"Time against {spent.word}", svg, "All stages of the update together.")


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
