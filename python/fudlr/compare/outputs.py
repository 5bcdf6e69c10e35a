"""A comparison as files and on the terminal: JSON, Parquet, a table, a Pareto plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import polars as pl
from matplotlib.figure import Figure
from rich.console import Console

from fudlr.common import terminal
from fudlr.common.files import write_json, write_table
from fudlr.report.svg import write_svg

RUINED = 0.5
"""Share of the trained NDCG below which a point is not drawn."""


def write_comparison(folder: Path, record: Mapping[str, Any]) -> None:
    """Write comparison.json, comparison.parquet (a row a point) and comparison.svg."""
    write_json(folder / "comparison.json", record)
    write_table(folder / "comparison.parquet", comparison_table(record))
    write_svg(folder / "comparison.svg", pareto(record))


def comparison_table(record: Mapping[str, Any]) -> pl.DataFrame:
    """One row a point of every rival; `in_table` marks the one that the table shows."""
    rows = [
        {
            "rival": name,
            "strength": point["strength"],
            "in_table": i == rival["chosen"],
            "seconds": point["seconds"],
            "cpu_seconds": point["cpu_seconds"],
            "kl_to_retrained": point["kl_to_retrained"],
            **point["figures"],
        }
        for name, rival in record["rivals"].items()
        for i, point in enumerate(rival["points"])
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def print_comparison(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a row a rival: figures on held-out users, changes with intervals, cost."""
    steered, ndcg, before = record["steered"], ndcg_key(record), record["trained"]
    heads = ("rival", "strength", steered, "change 95%", ndcg, "change 95%", "CPU s", "KL")
    start = _kl(record["trained_kl_to_retrained"])
    rows = [["trained", "", f"{before[steered]:.4g}", "", f"{before[ndcg]:.4g}", "", "", start]]
    for name, rival in record["rivals"].items():
        point = rival["points"][rival["chosen"]]
        row = [name if rival["comparable"] else f"{name} *", point["strength"]]
        for metric in (steered, ndcg):
            low, high = rival["intervals"]["change"][metric]
            row += [f"{point['figures'][metric]:.4g}", f"{low:+.3g} … {high:+.3g}"]
        rows.append([*row, f"{point['cpu_seconds']:.1f}", _kl(point["kl_to_retrained"])])
    console = console or terminal.console()
    console.print(terminal.table(heads, rows, left=len(heads)))
    if not all(rival["comparable"] for rival in record["rivals"].values()):
        console.print("* no point within 2% of the accuracy compared at; the nearest is shown")


def _kl(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def ndcg_key(record: Mapping[str, Any]) -> str:
    """NDCG's name, with its K."""
    return next(name for name in record["trained"] if name.startswith("ndcg@"))


def pareto(record: Mapping[str, Any]) -> Figure:
    """NDCG against the steered metric: a line a rival, intervals at the table's points.

    Points that keep less than `RUINED` of the trained NDCG would squeeze all others: they are
    named beside the plot.
    """
    steered, ndcg = record["steered"], ndcg_key(record)
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    before, beyond = record["trained"], []
    axes.plot(before[steered], before[ndcg], "k*", markersize=12, label="trained")
    markers = "oosDv^<>PXdph"
    for i, (name, rival) in enumerate(record["rivals"].items()):
        style: dict[str, Any] = {"color": f"C{i % 10}", "marker": markers[i % len(markers)]}
        shown = []
        for point in rival["points"]:
            figures = point["figures"]
            if figures[ndcg] >= RUINED * before[ndcg]:
                shown.append(figures)
            else:
                at = f"{figures[steered]:.3g}, {figures[ndcg]:.2g}"
                beyond.append(f"{name} {point['strength']} ({at})".replace("  ", " "))
        axes.plot([p[steered] for p in shown], [p[ndcg] for p in shown], ":", ms=4, **style)
        chosen, change = rival["points"][rival["chosen"]]["figures"], rival["intervals"]["change"]
        if chosen not in shown:
            continue
        ends = {
            f"{axis}err": [[max(v - low, 0.0)], [max(high - v, 0.0)]]
            for axis, metric in (("x", steered), ("y", ndcg))
            for v in [chosen[metric] - before[metric]]
            for low, high in [change[metric]]
        }
        style |= {"ms": 8, "lw": 0.7, "label": name, **ends}
        axes.errorbar(chosen[steered], chosen[ndcg], **style)
    axes.set_xlabel(f"{steered} ({'lower' if record['lower_is_better'] else 'higher'} is fairer)")
    axes.set_ylabel(f"{ndcg}, users that did not steer")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    if beyond:
        text = f"Not drawn, with less than half of the trained {ndcg}: " + "; ".join(beyond)
        figure.text(0.02, -0.02, fill(text, 110), fontsize=7, va="top")
    return figure
