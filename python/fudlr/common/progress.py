"""Progress on stderr: what is running, how much is done, an estimate of what is left.

The bars are tqdm's. On a terminal they move ten times a second; in a log file or a pipe, every few
seconds. `FUDLR_QUIET=1` silences everything.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from fudlr.common.terminal import say, visible

TERMINAL_INTERVAL = 0.1  # seconds between repaints: fast enough to look alive
LOG_INTERVAL = 5.0  # seconds between updates in a log
PATIENCE = 5.0  # seconds before a loop is shown that is over at once with small models

T = TypeVar("T")


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


def track(
    iterable: Iterable[T],
    total: int | None = None,
    description: str = "",
    initial: int = 0,
    *,
    delay: float = 0.0,
) -> Iterator[T]:
    """Iterate while reporting percentage, elapsed time and an estimate of what is left.

    Args:
        iterable: What to go through, lazily.
        total: Number of elements; taken from `len(iterable)` where that exists, else no estimate.
        description: What the loop does, in the user's words.
        initial: Elements of the total that were done before.
        delay: Seconds before anything is shown; `PATIENCE` for loops that are mostly over at once.

    Yields:
        The elements, unchanged. A loop left early, by `break`, an error or an interruption, leaves
        its bar where it came to.
    """
    live = sys.stderr.isatty()
    bar = tqdm(
        iterable,
        total=total,
        initial=initial,
        desc=visible(description) or "working",
        disable=is_quiet(),
        delay=delay,
        file=sys.stderr,
        mininterval=TERMINAL_INTERVAL if live else LOG_INTERVAL,
        dynamic_ncols=live,
        unit="",
    )
    with bar:
        yield from bar


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

    Args:
        announce: Whether stages are told on stderr; not where one is entered a thousand times.
    """

    def __init__(self, *, announce: bool = True) -> None:
        self._announce = _announce if announce else lambda _: None
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
        self._announce(f"{name} …")
        outcome = "stopped after"
        try:
            yield
            outcome = "took"
        finally:
            self._charge()
            self._stack.pop()
            self._announce(f"{name} {outcome} {duration(self._wall[name] - before)}")


def _announce(text: str) -> None:
    if not is_quiet():
        say(text, "dim")
