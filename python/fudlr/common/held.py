"""Files that are held while they are written: a process that is killed lets go of them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Make a file, and hold it meanwhile."""
    # Opened here, and not by mkstemp, so that the user's umask decides who may read it.
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        _hold(handle)
        yield
    finally:
        os.close(handle)


def is_abandoned(path: Path) -> bool:
    """Whether a file that was made by `held` is there, and nobody holds it."""
    if path.is_symlink() or not path.is_file():
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        return _hold(handle)
    finally:
        os.close(handle)


def _hold(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody does, or the file system has no locks
        return False
    return True
