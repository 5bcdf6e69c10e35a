"""The page: what the template shows, gathered, and written as one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fudlr.common.files import atomic_file
from fudlr.report import plots
from fudlr.report.cost import stage_rows, time_line
from fudlr.report.data import ReportData, section
from fudlr.report.glossary import glossary
from fudlr.report.rows import MetricRow, key_rows, metric_rows
from fudlr.report.samples import by_target, by_user, influence_columns, top_samples
from fudlr.report.verification import verification_tables
from fudlr.report.words import (
    agreement_sentences,
    diagnostic_line,
    diagnostic_rows,
    headline,
    next_steps,
    popular_sentence,
    worse_sentence,
)

REPORT_FILE = "report.html"
KINDS = {
    "lists": "On the lists that users see",
    "catalogue": "On the probabilities of the whole catalogue, which is what was steered by",
    "other": "Ranking and losses",
}


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
    rows, columns = metric_rows(summary), influence_columns(data)
    drawings = [*plots.tradeoffs(data), plots.changes(rows), plots.scores(data)]
    shown = [plot for plot in drawings if plot is not None]
    made = {name: list(_flat(section(summary, name))) for name in ("solver", "config", "versions")}
    return {
        "headline": headline(data),
        "agreement": list(agreement_sentences(summary)),
        "worse": worse_sentence(summary),
        "popular": popular_sentence(summary),
        "next": list(next_steps(data)),
        "warnings": [str(warning) for warning in summary.get("warnings") or []],
        "key": key_rows(summary),
        "kinds": [(title, of) for kind, title in KINDS.items() if (of := _of(rows, kind))],
        "has": _has(rows),
        "first": shown[0] if shown else None,
        "plots": shown[1:],
        "columns": columns,
        "samples": top_samples(data, columns),
        "groups": [table for table in (by_target(data), by_user(data)) if table],
        "checks": list(verification_tables(summary)),
        "diagnostics": diagnostic_rows(summary),
        "diagnostic_line": diagnostic_line(summary),
        "stages": list(stage_rows(summary)),
        "time": time_line(summary),
        "made": made,
        "seed": summary.get("seed"),
        "glossary": list(glossary(row.name for row in rows)),
    }


def _of(rows: list[MetricRow], kind: str) -> list[MetricRow]:
    return [row for row in rows if row.kind == kind]


def _has(rows: list[MetricRow]) -> dict[str, bool]:
    """Which columns there is anything for."""
    return {
        "retrained": any(row.retrained.value is not None for row in rows),
        "heldout": any(row.heldout_after.value is not None for row in rows),
        "null": any(row.null.value is not None for row in rows),
        "popular": any(row.popular.value is not None for row in rows),
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of the leaves."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            yield (prefix + str(name), ", ".join(map(str, value)))
        else:
            yield (prefix + str(name), "–" if value is None else str(value))
