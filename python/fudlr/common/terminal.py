"""Text on a terminal: what data and paths hold is shown, and never obeyed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich takes as long to import as all that `fudlr --help` needs
    from rich.console import Console, ConsoleOptions, ConsoleRenderable
    from rich.segment import Segment
    from rich.table import Table
    from rich.text import Text

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # a terminal acts on them
    "\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they turn the direction of what is read
    "\ud800-\udfff]"  # no UTF-8
)


def visible(text: str) -> str:
    """`text` with control characters and lone surrogates as escapes; line ends and tabs stay."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def console(*, stderr: bool = False) -> Console:
    """A console for a person, made anew: a test or a logger may have replaced the stream since.

    Whatever is printed on it, also within tables, is `visible`, and no markup is read in `say`.
    """
    from rich.console import Console, RenderHook

    class Visible(RenderHook):
        def process_renderables(
            self, renderables: list[ConsoleRenderable]
        ) -> list[ConsoleRenderable]:
            return [_Shown(each) for each in renderables]

    made = Console(stderr=stderr, highlight=False, soft_wrap=stderr)
    made.push_render_hook(Visible())
    return made


def say(text: str, style: str = "") -> None:
    """One line for a person, on stderr: stdout is for what programs read."""
    from rich.text import Text

    console(stderr=True).print(Text(visible(text).replace("\n", "\\n"), style=style))


def table(
    heads: Iterable[str], rows: Iterable[Iterable[str | Text]], *, left: int = 1, title: str = ""
) -> Table:
    """A table without lines; its first `left` columns stand left, the others right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),  # of 80 columns
    )
    for place, head in enumerate(heads):
        made.add_column(head, justify="left" if place < left else "right")
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


class _Shown:
    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        from rich.segment import Segment

        for segment in console.render(self._inner, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
