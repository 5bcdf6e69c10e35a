"""What the checks found, on the terminal: a small table each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fudlr.common import terminal
from fudlr.report import verification_tables


def print_checks(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print every check that was done; the permutation null stands in the report alone."""
    console = console or terminal.console()
    shown = {name: each for name, each in found.items() if name != "null"}
    for check in verification_tables({"verification": shown}):
        table = Table(title=check.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in check.head:
            table.add_column(name)
        for row in check.rows:
            table.add_row(*row)
        console.print(table)
