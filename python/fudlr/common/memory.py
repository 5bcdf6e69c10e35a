"""Memory: how much there is, and that what a command frees is kept for what it needs next."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt


def keep_freed() -> None:
    """Have glibc give freed memory back late, and take it in large pieces.

    Tiles of scores are made and freed thousands of times; by default each is new memory that the
    system clears page by page, a tenth of a request's CPU time. Without glibc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**25)  # the largest that it takes
        mallopt(_TRIM_THRESHOLD, 2**30)
        mallopt(_TOP_PAD, 2**26)


MATRICES = 8
"""Of scores, that a request holds at once where they are no factors."""


def scores_bytes(prompts: int, items: int) -> int:
    """Bytes of one matrix of their scores, in float32."""
    return 4 * prompts * items


def physical() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
