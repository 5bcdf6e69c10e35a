"""The page: what the template shows, gathered, and written as one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fudlr.common.files import atomic_file
from fudlr.common.progress import duration
from fudlr.report import plots
from fudlr.report.cost import cost, stage_rows
from fudlr.report.data import ReportData, section
from fudlr.report.metrics_table import (
    MetricRow,
    accuracy_metric,
    headline,
    metric_rows,
    objective_metrics,
)
from fudlr.report.numbers import share
from fudlr.report.samples_table import by_target, by_user, influence_columns, top_samples
from fudlr.report.signatures import signature_rows
from fudlr.report.tradeoff import tradeoffs
from fudlr.report.verification import verification_tables

REPORT_FILE = "report.html"


def write_report(folder: Path, data: ReportData) -> Path:
    """Write `folder`/report.html, whole or not at all, and return its path."""
    path = folder / REPORT_FILE
    text = render_report(data)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def render_report(data: ReportData) -> str:
    """The report as one HTML page that refers to nothing outside itself."""
    environment = Environment(
        loader=PackageLoader("fudlr.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(_view(data))


def _view(data: ReportData) -> dict[str, Any]:
    summary = data.summary
    rows = metric_rows(summary)
    columns = influence_columns(data)
    drawings = [*tradeoffs(data), plots.scores(data), plots.changes(rows)]
    return {
        "headline": headline(data),
        "tiles": list(_tiles(data, rows)),
        "warnings": [str(warning) for warning in summary.get("warnings") or []],
        "signatures": list(signature_rows(summary)),
        "checks": list(verification_tables(summary)),
        "rows": rows,
        "has": {
            "predicted": any(row.predicted.value is not None for row in rows),
            "retrained": any(row.retrained.value is not None for row in rows),
            "heldout": any(row.heldout_after.value is not None for row in rows),
            "null": any(row.null.value is not None for row in rows),
        },
        "plots": [plot for plot in drawings if plot is not None],
        "columns": columns,
        "samples": top_samples(data, columns),
        "removed": data.removed.height,
        "groups": [table for table in (by_target(data), by_user(data)) if table],
        "stages": list(stage_rows(summary)),
        "seconds": plots.seconds(cost(summary)),
        "solver": list(_flat(section(summary, "solver"))),
        "steering": list(_flat(section(summary, "steering"))),
        "config": list(_flat(section(summary, "config"))),
        "versions": list(_flat(section(summary, "versions"))),
        "seed": summary.get("seed"),
    }


def _tiles(data: ReportData, rows: list[MetricRow]) -> Iterator[tuple[str, str, str, str]]:
    """Key figures: name, figure, line below, verdict."""
    total = data.mask.height
    removed = data.removed.height
    yield ("Removed", share(removed / total if total else 0), f"{removed:,} of {total:,}", "")
    named = objective_metrics(data.summary)
    paid = accuracy_metric(section(data.summary, "before"))
    if paid is not None and paid not in named:
        named.append(paid)
    known = {row.name: row for row in rows}
    for name in named[:3]:
        row = known[name]
        values = f"{row.before.text} → {row.after.text}"
        yield (row.label, row.change.text, values, row.change.verdict)
    spent = cost(data.summary)
    if spent is not None and spent.training:
        against = f"{duration(spent.update)} against {duration(spent.training)}"
        yield (f"Time against {spent.word}", spent.share or "", against, "")
    elif spent is not None:
        yield ("Time", duration(spent.update), "", "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of the leaves."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            yield (prefix + str(name), ", ".join(map(str, value)))
        else:
            yield (prefix + str(name), "–" if value is None else str(value))
