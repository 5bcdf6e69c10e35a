"""What several tables say alike."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")


def percent(value: float) -> str:
    """A relative change with its sign."""
    return f"{value:+.1%}"


def machine(record: dict) -> str:
    """One sentence on what a figure was made with."""
    found = record["machine"]
    packages = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    return (
        f"Made by `{record['command']}` at commit {found['commit']} on {found['cpu']}, "
        f"{found['cores']} cores, {found['threads']} threads, {found['isa']}; {packages}."
    )


def rows(head: Sequence[str], body: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table."""
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(map(str, cells)) + " |" for cells in body),
    ]


def bar_rows(record: dict) -> list[str]:
    """The table of `record["bars"]`: what was measured and what was asked."""
    return rows(
        ("bar", "measured", "asked", ""),
        (
            (
                row["bar"],
                f"{row['measured']:.4f}",
                f"{row['threshold']:g}",
                "met" if row["met"] else "missed",
            )
            for row in record["bars"]
        ),
    )


def save_plot(figure: Any, path: Path) -> None:
    """Write an SVG that is the same whenever it is made from the same figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
