"""Progress on stderr: what is running, how much is done, an estimate of what is left.

On a terminal one line is rewritten; elsewhere (a log file, a pipe) plain lines appear every few
seconds. `FUDLR_QUIET=1` silences both. Nothing is hidden or threaded, so that an interruption
leaves the terminal as it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

TERMINAL_INTERVAL = 0.1  # seconds between repaints: fast enough to look alive
LOG_INTERVAL = 5.0  # seconds between lines in a log
BAR_CELLS = 24

T = TypeVar("T")

_REWIND = Control((ControlType.CARRIAGE_RETURN,), (ControlType.ERASE_IN_LINE, 2))


def is_quiet() -> bool:
    """Whether the user asked for silence with `FUDLR_QUIET=1`."""
    return os.environ.get("FUDLR_QUIET", "") not in ("", "0")


def duration(seconds: float) -> str:
    """A time span for a person: `0.52 s`, `12.3 s`, `4 min 05 s`, `2 h 10 min`."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _console() -> Console:
    # Made anew for each use: stderr may have been replaced (by a test, a logger) since.
    return Console(stderr=True, highlight=False, soft_wrap=True)


class _Meter:
    """Text of one loop's progress, and when to show it."""

    def __init__(self, total: int | None, description: str) -> None:
        self.console = _console()
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.quiet = is_quiet()
        self.total = total
        self.description = description or "working"
        self.done = 0
        self.start = time.monotonic()
        self.shown = self.start if not self.live else self.start - TERMINAL_INTERVAL

    def text(self) -> str:
        elapsed = time.monotonic() - self.start
        if not self.total:
            return f"{self.description}  {self.done} done  {duration(elapsed)}"
        share = min(self.done / self.total, 1.0)
        parts = [self.description]
        if self.live:
            filled = round(share * BAR_CELLS)
            parts.append("━" * filled + "╌" * (BAR_CELLS - filled))
        parts += [f"{share:4.0%}", f"{self.done}/{self.total}", duration(elapsed)]
        if 0 < self.done < self.total:
            parts.append(f"{duration(elapsed * (1 - share) / share)} left")
        return "  ".join(parts)

    def advance(self) -> None:
        self.done += 1
        interval = TERMINAL_INTERVAL if self.live else LOG_INTERVAL
        if not self.quiet and time.monotonic() - self.shown >= interval:
            self.show(end="" if self.live else "\n")

    def show(self, note: str = "", end: str = "\n") -> None:
        if self.quiet:
            return
        self.shown = time.monotonic()
        text = Text(self.text() + note, no_wrap=True, overflow="ellipsis")
        if self.live:
            self.console.control(_REWIND)
            text.truncate(max(self.console.width - 1, 1), overflow="ellipsis")
        self.console.print(text, end=end)


def track(iterable: Iterable[T], total: int | None = None, description: str = "") -> Iterator[T]:
    """Iterate while reporting percentage, elapsed time and an estimate of what is left.

    Args:
        iterable: What to go through, lazily.
        total: Number of elements; taken from `len(iterable)` where that exists, else no estimate.
        description: What the loop does, in the user's words.

    Yields:
        The elements, unchanged. A loop left early, by `break`, an error or an interruption, ends
        its line with how far it came.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    meter = _Meter(total, description)
    finished = False
    try:
        for element in iterable:
            yield element
            meter.advance()
        finished = True
    finally:
        meter.show(note="" if finished else "  (stopped)")


class StageClock:
    """Wall and CPU seconds of named stages.

    A stage entered again adds to what it had. A stage inside another is counted once, for the
    inner one: the sum over stages is the time that passed in any of them.

    Example:
        >>> clock = StageClock()
        >>> with clock.stage("score"):
        ...     scores = sorted(range(10))
        >>> list(clock.seconds)
        ['score']
    """

    def __init__(self) -> None:
        self._wall: dict[str, float] = {}
        self._cpu: dict[str, float] = {}
        self._stack: list[str] = []
        self._mark = (0.0, 0.0)

    @property
    def seconds(self) -> dict[str, float]:
        """Wall seconds by stage, in the order in which stages were first entered."""
        return dict(self._wall)

    @property
    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds of this process, all threads together, by stage."""
        return dict(self._cpu)

    def _charge(self) -> None:
        """Book the time since the last mark on the innermost stage."""
        now = (time.perf_counter(), time.process_time())
        if self._stack:
            name = self._stack[-1]
            self._wall[name] += now[0] - self._mark[0]
            self._cpu[name] += now[1] - self._mark[1]
        self._mark = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body as stage `name`, and say so on stderr; time counts on errors too."""
        self._charge()
        self._wall.setdefault(name, 0.0)
        self._cpu.setdefault(name, 0.0)
        self._stack.append(name)
        before = self._wall[name]
        _announce(f"{name} …")
        outcome = "stopped after"
        try:
            yield
            outcome = "took"
        finally:
            self._charge()
            self._stack.pop()
            _announce(f"{name} {outcome} {duration(self._wall[name] - before)}")


def _announce(text: str) -> None:
    if not is_quiet():
        _console().print(Text(text, style="dim"))
