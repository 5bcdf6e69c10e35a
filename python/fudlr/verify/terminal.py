"""What the checks found, on the terminal: a line or a small table each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fudlr.gradients import VALIDATION_LOSS


def print_checks(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print every check that was done."""
    console = console or Console()
    for name, title in (("lds", "Removals, really retrained"), ("loo", "One sample left out")):
        if name in found:
            parts = found[name] if name == "lds" else {"one": found[name]}
            _print(console, title, AGREEMENT, agreement_rows(parts))
    if "seeds" in found:
        title = f"Change by removal over seeds {', '.join(map(str, found['seeds']['seeds']))}"
        _print(console, title, SEEDS, seed_rows(found["seeds"]["metrics"]))
    if "heldout" in found:
        _print(console, "Held-out users, cross-fitted", HELDOUT, heldout_rows(found["heldout"]))
    if "forgetting" in found:
        _print(console, "What returns", FORGETTING, forgetting_rows(found["forgetting"]))
    if "planted" in found:
        each = found["planted"]
        console.print(
            f"Planted: {each['first']:.1%} of {each['planted']} samples stand among the first as "
            f"many; by target popularity {each['first_by_popularity']:.1%}, by chance "
            f"{each['chance']:.1%}"
        )


AGREEMENT = ("removals", "metric", "n", "Spearman", "95%", "slope", "95%")
SEEDS = ("metric", "closed form", "retrained: mean", "deviation")
HELDOUT = ("metric", "before", "after", "retrained", "change 95%", "retrained change 95%")
FORGETTING = ("adapter", "trained on", "epochs", "metric", "before", "after", "returned")


def agreement_rows(parts: Mapping[str, Any]) -> Iterator[list[str]]:
    """One row a kind of removal and metric."""
    for kind, part in parts.items():
        if not isinstance(part, Mapping):
            continue
        for metric, each in part["agreement"].items():
            yield [
                kind,
                metric,
                str(each["removals"]),
                f"{each['spearman']:.2f}",
                _span(each["spearman_interval"], ".2f"),
                f"{each['slope']:.2f}",
                _span(each["slope_interval"], ".2f"),
            ]


def seed_rows(metrics: Mapping[str, Any]) -> Iterator[list[str]]:
    """One row a metric."""
    for name, each in metrics.items():
        spread = "–" if each["deviation"] is None else f"{each['deviation']:.3g}"
        yield [name, f"{each['closed_form']:+.4g}", f"{each['mean']:+.4g}", spread]


def heldout_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """One row a metric, with paired intervals."""
    spans = found["intervals"]
    for name, before in found["before"].items():
        cells = [name, *(f"{v:.4g}" for v in (before, found["after"][name]))]
        cells.append(f"{found['retrained'][name]:.4g}")
        for change in ("change", "retrained_change"):
            cells.append(_span(spans[change][name], "+.3g") if name in spans[change] else "–")
        yield cells


def forgetting_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """One row a training and figure that tells something."""
    shown = [
        name
        for name in ("loss_of_forgotten", "arp", "hellinger", VALIDATION_LOSS)
        if name in found["start"]["trained"]
    ]
    for each in found["trained_on"]:
        for name in shown:
            back = each["returned"].get(name)
            yield [
                each["start"],
                each["samples"],
                str(each["epochs"]),
                name,
                f"{found['start'][each['start']][name]:.4g}",
                f"{each['figures'][name]:.4g}",
                "–" if back is None else f"{back:+.0%}",
            ]


def _span(pair: Any, form: str) -> str:
    low, high = pair
    return f"{low:{form}} … {high:{form}}"


def _print(console: Console, title: str, head: tuple[str, ...], rows: Iterator[list[str]]) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in head:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    console.print(table)
