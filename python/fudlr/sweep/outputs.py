"""A sweep as files and on the terminal: JSON, Parquet, a table, a trade-off plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.text import Text

from fudlr.common import terminal
from fudlr.common.files import write_json, write_table
from fudlr.report.svg import INK, canvas, legend_above, write_svg

KINDS = ("predicted", "measured", "retrained")
SWEPT = ("lambda_fair", "lambda_acc", "lambda_spa", "budget")
_STYLES = {"predicted": "o--", "measured": "s-", "retrained": "D"}


def write_sweep(folder: Path, record: Mapping[str, Any]) -> None:
    """Write sweep.json, sweep.parquet (a row a point) and sweep.svg."""
    write_json(folder / "sweep.json", record)
    write_table(folder / "sweep.parquet", sweep_table(record))
    _plot(record, folder / "sweep.svg")


def sweep_table(record: Mapping[str, Any]) -> pl.DataFrame:
    """One row a point: λ's, budget, removals, and every figure as `kind.prompts.metric`.

    A predicted change has no prompts in its name: it is of the validation prompts' surrogates.
    """
    rows = []
    for place, point in enumerate(record["points"]):
        row = {name: point[name] for name in (*SWEPT, "removed")}
        row["sweet_spot"] = place == record["sweet_spot"]
        for kind in KINDS:
            row |= _flat(kind, point[kind] or {})
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def print_sweep(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a row a point: relative changes of the objective and of the validation loss."""
    console = console or terminal.console()
    shown = [kind for kind in KINDS if any(point[kind] for point in record["points"])]
    heads = ["", "λ fair", "λ acc", "λ spa", "budget", "removed"]
    heads += [head for kind in shown for head in (kind, "loss")]
    rows = []
    for place, point in enumerate(record["points"]):
        row = ["★" if place == record["sweet_spot"] else ""]
        row += [f"{point[name]:g}" for name in SWEPT] + [str(point["removed"])]
        for kind in shown:
            found = point[kind] or {}
            for name in ("objective", "loss_rise"):
                row.append(f"{found[name]:+.2%}" if found else "–")
        rows.append(row)
    console.print(terminal.table(heads, rows, left=0))
    names = " and ".join(record["surrogates"])
    told = f"Changes are relative, and of the surrogate {names} on the validation prompts."
    for line in (f"★ {record['rule']}.", told):
        console.print(Text(line))
    for warning in record["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"))


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in values.items():
        key = f"{prefix}.{name}"
        flat |= _flat(key, value) if isinstance(value, Mapping) else {key: value}
    return flat


def _plot(record: Mapping[str, Any], path: Path) -> None:
    """Objective against validation loss: a line for each choice of λ's, a point a budget."""
    lines: dict[tuple[float, ...], list[Mapping[str, Any]]] = {}
    for point in record["points"]:
        lines.setdefault(tuple(point[name] for name in SWEPT[:3]), []).append(point)
    with canvas(4.2) as (figure, axes):
        axes.plot(0, 0, "*", color=INK, markersize=10, label="trained")
        for place, (lambdas, points) in enumerate(lines.items()):
            said = "λ " + "/".join(f"{value:g}" for value in lambdas)
            for kind, style in _STYLES.items():
                name = said if kind == record["basis"] else None
                axes.plot(
                    *_xy(points, kind), style, color=f"C{place % 10}", markersize=4, label=name
                )
        spot = record["points"][record["sweet_spot"]]
        xs, ys = _xy([spot], record["basis"])
        axes.plot(xs, ys, "o", markersize=13, fillstyle="none", color=INK, label="sweet spot")
        axes.set_xlabel("validation loss, change in %")
        axes.set_ylabel(f"{' + '.join(record['surrogates'])}, change in %")
        axes.set_title("○ predicted   □ measured   ◇ retrained", fontsize=8, loc="right", y=-0.28)
        legend_above(axes, columns=3)
        write_svg(path, figure)


def _xy(points: list[Mapping[str, Any]], kind: str) -> tuple[list[float], list[float]]:
    found = [point[kind] for point in points if point[kind]]
    return [100 * each["loss_rise"] for each in found], [100 * each["objective"] for each in found]
