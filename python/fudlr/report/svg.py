"""Drawing as inline SVG: text stays text, nothing is loaded from elsewhere, words for the blind.

Drawn at phone width, so that the letters stay readable there; a wide page sets two in a row.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fudlr.common.files import atomic_file

BLUE, ORANGE, INK, PALE = "#1d5fa3", "#b8510d", "#3c4654", "#c9d2dc"
WIDTH = 5.0  # inches at 72 units: 360 wide, about a phone's

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fudlr",
    "text.parse_math": False,  # a $ in a metric's name is a dollar
    "font.size": 10.5,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e8ecf0",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Plot:
    """A drawing with its title, what it shows in words, and a caption."""

    title: str
    svg: Markup
    caption: str


@contextmanager
def canvas(height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure `height` inches high, and its axes, in the report's style."""
    with mpl.rc_context(_STYLE):
        drawing = Figure(figsize=(WIDTH, height), layout="constrained")
        yield drawing, drawing.add_subplot()


def legend_above(axes: Axes, columns: int) -> None:
    """A legend between title and axes, where it hides no point."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        handletextpad=0.5,
        columnspacing=1.2,
    )


def write_svg(path: Path, drawing: Figure) -> None:
    """Write a drawing as a file: the same one, the same bytes."""
    with atomic_file(path) as temporary, mpl.rc_context({"svg.hashsalt": "fudlr"}):
        drawing.savefig(temporary, format="svg", metadata={"Date": None}, bbox_inches="tight")


def to_svg(drawing: Figure, name: str, words: str) -> Markup:
    """The drawing as an <svg> element with ids of its own, no reference outside, and `words`."""
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, end, body = text.partition(">")
    head = re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", head)
    body = body.replace("xlink:href", "href")
    body = re.sub(r'\b(id=")', rf"\g<1>{name}-", body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    named = head.replace("<svg", f'<svg role="img" aria-label="{escape(words)}"', 1)
    return Markup(named + end + body)
