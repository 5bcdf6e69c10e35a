"""The summary on the terminal: sentences first, then the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fudlr.common import terminal
from fudlr.report.cost import time_line
from fudlr.report.rows import Change, MetricRow, metric_rows
from fudlr.report.words import (
    agreement_sentences,
    diagnostic_line,
    popular_sentence,
    worse_sentence,
)

_COLOUR = {"better": "green", "worse": "red"}


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print how the update stands to retraining, what got worse, every figure, and warnings."""
    console = console or terminal.console()
    for sentence in agreement_sentences(summary):
        console.print(Text(sentence, style="bold"))
    console.print(_table(metric_rows(summary)))
    lines = [
        (worse_sentence(summary), "red"),
        (popular_sentence(summary), ""),
        (time_line(summary), ""),
        (diagnostic_line(summary), ""),
    ]
    lines += [(f"warning: {text}", "yellow") for text in summary.get("warnings") or []]
    for line, style in lines:
        if line:
            console.print(Text(line, style=style))


def _table(rows: list[MetricRow]) -> Table:
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
        cells = [Text(f"{row.name} {row.arrow}".rstrip()), Text(row.before.text)]
        cells += [Text(row.after.text), _change(row.change)]
        cells += [Text(row.retrained.text), _change(row.retrained_change)] if retrained else []
        table.add_row(*cells, *([_change(row.heldout_change)] if heldout else []))
    return table


def _change(change: Change) -> Text:
    return Text(change.text, style=_COLOUR.get(change.verdict, ""))
