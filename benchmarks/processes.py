"""Work in a process of its own: its peak memory is then its own, and what it held is given back."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from fudlr.common.errors import UsageError

T = TypeVar("T")
_STATUS = Path("/proc/self/status")
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""Has glibc give freed blocks of 1 MiB and more back to the system at once. Left alone it raises
this threshold as it goes, and blocks of growing sizes then leave holes that count as the process's
memory. A lower one costs time: each block's pages are then made anew."""


def peak_bytes() -> int:
    """Largest resident memory of this process so far, bytes; mapped files included."""
    if _STATUS.exists():
        # Unlike getrusage's, it begins anew with the process's program.
        return int(_STATUS.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) * 1024
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def in_own_process(function: Callable[..., T], *args: Any) -> T:
    """`function(*args)` in a fresh interpreter, ended afterwards; its errors are raised here.

    The interpreter has the environment `GIVE_BACK`, so that its peak is of what was held at once.

    Raises:
        UsageError: The process was killed, mostly for want of memory.
    """
    for name, value in GIVE_BACK.items():
        os.environ.setdefault(name, value)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise UsageError(
                f"{function.__name__} was to run in a process of its own",
                "the process was killed before it was done",
                "Give it more memory, or less to do",
            ) from error
