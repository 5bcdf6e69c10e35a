"""What becomes of ranks when one of them ends: all of them end, and each says why.

An error of one rank is left in the rendezvous' store, where a thread of each rank looks several
times a second. A rank that was killed leaves nothing; its connections close, and the others name it
by its heartbeat, which a rank that hangs or lost its network stops too.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from fudlr.common.terminal import visible

ERROR, BEAT, SEEN = "fudlr/error", "fudlr/beat/{}", "fudlr/seen"
"""Keys in the rendezvous' store."""
POLL = 0.25  # seconds between looks at it
STALE = 60.0  # seconds without a heartbeat after which a rank counts as gone
LINGER = 5.0  # seconds that a failed rank waits at most until the others have read why


class Watch:
    """The thread that looks for other ranks' errors and heartbeats, and gives this one's."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._name = f"rank {rank} of {size} on {socket.gethostname()}"
        self._over = threading.Event()
        self._beats: dict[int, tuple[bytes, float]] = {}
        store.set(BEAT.format(rank), "0")
        self._thread = threading.Thread(target=self._run, name="fudlr-ranks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join(10 * POLL)

    def fail(self, text: str) -> None:
        """Tell all ranks, once, why this one ends; with the rank that is gone, where one is."""
        for each in (signal.SIGTERM, signal.SIGINT):  # of a launcher that saw a rank end
            signal.signal(each, signal.SIG_IGN)
        if self._over.is_set():
            return
        self.stop()
        try:
            self._tell(text)
        except RuntimeError:
            _say(f"{self._name} ends: rank 0, or what started it, is gone ({text})")

    def _tell(self, text: str) -> None:
        self._wait(4 * POLL)  # for another rank to say what ended it, where that was the reason
        gone = self._gone(8 * POLL)
        if gone and not self._store.check([ERROR]):
            text = f"{_named(gone)} no longer answers: killed, or short of memory ({text})"
        told = f"error on {self._name}: {text}"
        first = self._store.compare_set(ERROR, "", told).decode()
        _say(first if first == told else f"{self._name} ends too: {first}")
        self._store.add(SEEN, 1)
        self._wait(LINGER, lambda: self._store.add(SEEN, 0) >= self._size - len(gone))

    def _gone(self, patience: float) -> list[int]:
        """Ranks whose heartbeat stands still for some seconds, without this one."""
        before = self._read()
        if self._wait(patience, lambda: self._store.check([ERROR])):
            return []
        after = self._read()
        return [r for r in range(self._size) if r != self._rank and before[r] == after[r]]

    def _wait(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> bool:
        """Wait, with a heartbeat; whether it was enough."""
        until = time.monotonic() + seconds
        while not (found := enough()) and time.monotonic() < until:
            self._store.set(BEAT.format(self._rank), str(time.monotonic()))
            time.sleep(POLL)
        return found

    def _read(self) -> list[bytes]:
        there = [BEAT.format(rank) for rank in range(self._size)]
        return [self._store.get(key) if self._store.check([key]) else b"" for key in there]

    def _run(self) -> None:
        count = 0
        while not self._over.wait(POLL):
            count += 1
            try:
                self._store.set(BEAT.format(self._rank), str(time.monotonic()))
                if self._store.check([ERROR]):
                    self._end(self._store.get(ERROR).decode())
                if count % 20 == 0:
                    self._look()
            except RuntimeError:
                # The others end at once after work that went well.
                if not self._over.wait(2.0):
                    self._leave("rank 0, or what started it, is gone: its connection was closed")

    def _look(self) -> None:
        now = time.monotonic()
        for rank, beat in enumerate(self._read()):
            if self._beats.get(rank, (None, 0.0))[0] != beat:
                self._beats[rank] = (beat, now)
        gone = [rank for rank, (_, since) in self._beats.items() if now - since > STALE]
        if gone and self._rank not in gone:
            self._end(f"{_named(gone)} gave no sign of life for {STALE:.0f} s")

    def _end(self, text: str) -> None:
        first = self._store.compare_set(ERROR, "", text).decode()
        self._store.add(SEEN, 1)
        if self._rank == 0:  # whose process may hold the store
            self._wait(LINGER, lambda: self._store.add(SEEN, 0) >= self._size)
        self._leave(first)

    def _leave(self, text: str) -> None:
        """End this process, whatever its main thread waits for."""
        if not self._over.is_set():
            _say(f"{self._name} ends: {text}")
            os._exit(1)


def _named(gone: list[int]) -> str:
    return f"rank {', '.join(map(str, gone))}"


def _say(text: str) -> None:
    """On the process's own stderr, whatever rank it is."""
    stream = sys.__stderr__
    if stream is not None:
        print(visible(text).replace("\n", "\\n"), file=stream, flush=True)
