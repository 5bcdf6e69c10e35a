"""The summary on the terminal: sentences first, then the table; and what the checks found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from fudlr.common import terminal
from fudlr.report.cost import time_line
from fudlr.report.rows import Change, MetricRow, metric_rows
from fudlr.report.verification import verification_tables
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
    rows = metric_rows(summary)
    retrained = any(row.retrained.value is not None for row in rows)
    heldout = any(row.heldout_after.value is not None for row in rows)
    heads = ["metric", "before", "after", "change"]
    heads += ["retrained", "change"] if retrained else []
    heads += ["held out"] if heldout else []
    console.print(terminal.table(heads, [_row(row, retrained, heldout) for row in rows]))
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


def print_checks(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print every check that `fudlr verify` did; the permutation null is in the report alone."""
    console = console or terminal.console()
    for check in verification_tables(summary, without=("null",)):
        found = terminal.table(check.head, check.rows, left=len(check.head), title=check.title)
        console.print(found)


def _row(row: MetricRow, retrained: bool, heldout: bool) -> list[str | Text]:
    cells: list[str | Text] = [f"{row.name} {row.arrow}".rstrip(), row.before.text]
    cells += [row.after.text, _change(row.change)]
    cells += [row.retrained.text, _change(row.retrained_change)] if retrained else []
    return [*cells, *([_change(row.heldout_change)] if heldout else [])]


def _change(change: Change) -> Text:
    return Text(change.text, style=_COLOUR.get(change.verdict, ""))
