"""Who may write: one process at a time to the manifest, one to each writer's shards."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fudlr.gradients.store.errors import StoreError


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """One process at a time; the system lets go of it when the process dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def writer_lock_path(folder: Path, writer: str) -> Path:
    """The file that stands for a writer's name in use."""
    return folder / f".writer-{writer}.lock"


def lock_writer(folder: Path, writer: str) -> int:
    """Hold the writer's name; the system lets go of it when the process dies."""
    path = writer_lock_path(folder, writer)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise StoreError(
                f"rows were to be added to the store {folder} as writer {writer}",
                "another process is doing so under this name",
                "Give each process its own writer name",
            ) from error
        # The one before may have removed the file between our opening and locking it.
        if path.exists() and os.stat(path).st_ino == os.fstat(handle).st_ino:
            return handle
        os.close(handle)
