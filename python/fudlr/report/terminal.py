"""The summary as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fudlr.common import terminal
from fudlr.common.progress import duration
from fudlr.report.cost import cost
from fudlr.report.data import section
from fudlr.report.metrics_table import Change, MetricRow, metric_rows
from fudlr.report.signatures import signature_line

_COLOUR = {"better": "green", "worse": "red"}


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print metrics before, after and, where measured, retrained and held out; then warnings."""
    console = console or terminal.console()
    rows = metric_rows(summary)
    retrained = any(row.retrained.value is not None for row in rows)
    heldout = any(row.heldout_after.value is not None for row in rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    headings = ["before", "after", "change"]
    headings += ["retrained", "change"] if retrained else []
    headings += ["held out"] if heldout else []
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*_cells(row, retrained, heldout))
    console.print(table)
    spent = cost(summary)
    if spent is not None:
        against = f", {spent.share} of {spent.word}" if spent.share else ""
        console.print(Text(f"time: {duration(spent.update)}{against}"))
    mode = section(summary, "steering").get("mode")
    if mode is not None:
        console.print(Text(f"steering: {mode}, which is no removal of samples", style="yellow"))
    looked = signature_line(summary)
    if looked is not None:
        console.print(Text(looked))
    for warning in summary.get("warnings") or []:
        console.print(Text(f"warning: {warning}", style="yellow"))


def _cells(row: MetricRow, retrained: bool, heldout: bool) -> list[Text]:
    cells = [Text(f"{row.name} {row.arrow}".rstrip()), Text(row.before.text), Text(row.after.text)]
    cells.append(_change(row.change))
    if retrained:
        cells += [Text(row.retrained.text), _change(row.retrained_change)]
    if heldout:
        cells.append(_change(row.heldout_change))
    return cells


def _change(change: Change) -> Text:
    return Text(change.text, style=_COLOUR.get(change.verdict, ""))
