"""The page and the model card: what the templates show, gathered, and written as one file each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fudlr.common.files import write_text
from fudlr.metrics import METRICS
from fudlr.report import plots
from fudlr.report.cost import stage_rows, time_line
from fudlr.report.data import ReportData, number, section
from fudlr.report.numbers import label, share
from fudlr.report.rows import MetricRow, key_rows, metric_rows
from fudlr.report.samples import group_tables, influence_columns, top_samples
from fudlr.report.verification import verification_tables
from fudlr.report.words import (
    agreement_sentences,
    diagnostic_line,
    diagnostic_rows,
    headline,
    popular_sentence,
    unclear,
    worse_sentence,
)

REPORT_FILE = "report.html"
KINDS = {
    "lists": "On the lists that users see",
    "catalogue": "On the probabilities of the whole catalogue, which is what was steered by",
    "other": "Ranking and losses",
}
OPTIONAL = {
    "retrained": "retrained",
    "heldout": "heldout_after",
    "null": "null",
    "popular": "popular",
}
"""Columns that are shown where any row has a value in them, and the field that has it."""


def write_report(folder: Path, data: ReportData) -> Path:
    """Write `folder`/report.html, whole or not at all, and return its path."""
    write_text(folder / REPORT_FILE, render_report(data))
    return folder / REPORT_FILE


def render_report(data: ReportData) -> str:
    """The report as one HTML page that refers to nothing outside itself."""
    summary = data.summary
    rows, columns = metric_rows(summary), influence_columns(data)
    drawn = [*plots.tradeoffs(data), *plots.changes(rows), *plots.scores(data)]
    return _render(
        "report.html.j2",
        headline=headline(data),
        agreement=list(agreement_sentences(summary)),
        worse=worse_sentence(summary),
        popular=popular_sentence(summary),
        removed=data.removed.height,
        forgets=bool(section(summary, "forget")),
        unclear=unclear(summary),
        warnings=[str(warning) for warning in summary.get("warnings") or []],
        key=key_rows(summary),
        kinds=[
            (title, of)
            for kind, title in KINDS.items()
            if (of := [row for row in rows if row.kind == kind])
        ],
        has={
            column: any(getattr(row, name).value is not None for row in rows)
            for column, name in OPTIONAL.items()
        },
        first=drawn[0] if drawn else None,
        plots=drawn[1:],
        columns=columns,
        samples=list(top_samples(data, columns)),
        groups=list(group_tables(data)),
        explained=explained(summary),
        checks=list(verification_tables(summary)),
        diagnostics=diagnostic_rows(summary),
        diagnostic_line=diagnostic_line(summary),
        stages=list(stage_rows(summary)),
        time=time_line(summary),
        made={n: list(_flat(section(summary, n))) for n in ("solver", "config", "versions")},
        seed=summary.get("seed"),
        named=dict(map(_named, rows)),
    )


def explained(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables that `fudlr explain` added: `title`, and `rows` of five texts; others are left
    out."""
    found = summary.get("explained")
    return [
        each
        for each in (found if isinstance(found, list) else [])
        if isinstance(each, dict)
        and isinstance(each.get("title"), str)
        and isinstance(each.get("rows"), list)
        and all(isinstance(row, list) and len(row) == 5 for row in each["rows"])
    ]


def model_card(data: ReportData, base: str) -> str:
    """Markdown with the front matter that model hubs read: what the debiased adapter is.

    Args:
        data: What `fudlr debias` found.
        base: Name of the base model on a hub, or a local path, which the card does not repeat.
    """
    summary = data.summary
    owner, _, rest = base.partition("/")
    public = bool(owner.strip(".~") and rest and "/" not in rest)
    source = str(section(summary, "config", "data").get("source", "data not named"))
    debias = section(summary, "config", "debias")
    return _render(
        "card.md.j2",
        base=base if public else None,
        headline=headline(data),
        sentences=[worse_sentence(summary), *agreement_sentences(summary)],
        kind=section(summary, "config", "recommender").get("kind", "not known"),
        source=source.replace("\\", "/").rstrip("/").rpartition("/")[2],  # of a path its last part
        total=data.mask.height,
        removed=data.removed.height,
        share=share(data.removed.height / max(data.mask.height, 1)),
        objective=None if section(summary, "forget") else summary.get("objective", ""),
        rows=metric_rows(summary),
        settings={
            "budget": debias.get("budget"),
            "curvature": debias.get("curvature"),
            "damping": number(section(summary, "solver").get("damping")),
        },
        warnings=summary.get("warnings") or [],
    )


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("fudlr.report"),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)


def _named(row: MetricRow) -> tuple[str, tuple[str, str]]:
    """For the glossary: a figure's bare name, its label, and what an own metric's class says."""
    name = row.name.partition("@")[0].removesuffix("_soft")
    lines = (type(METRICS[name]).__doc__ or "").splitlines() if name in METRICS else []
    return name, (label(name), lines[0] if lines else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of the leaves."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            yield (prefix + str(name), ", ".join(map(str, value)))
        else:
            yield (prefix + str(name), "–" if value is None else str(value))
