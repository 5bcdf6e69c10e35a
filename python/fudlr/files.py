"""Files that are either whole or absent: written under a temporary name, flushed, renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fudlr.errors import FudlrError, UsageError


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it and rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o644)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success flush it and put it in `path`'s place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.replace(old / "old")
            try:
                temporary.replace(path)
            except BaseException:
                (old / "old").replace(path)
                raise
            finally:
                shutil.rmtree(old)
        else:
            temporary.replace(path)
        _sync(path.parent)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN is refused, since JSON has none."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_writable(folder: Path) -> None:
    """Raise before long work where `folder` cannot be created or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FudlrError(
            f"results were to be written to {folder}",
            f"it cannot be written ({error.strerror})",
            "Choose another folder with --out, or change its permissions",
        ) from error


def check_replaceable(folder: Path, marker: str) -> None:
    """Refuse to replace a folder that holds something else than an earlier result.

    Raises:
        UsageError: `folder` is not empty and has no file named `marker`, or is a file.
        FudlrError: The folder above it cannot be written.
    """
    asked = f"results were to be written to {folder}"
    if folder.exists() and not folder.is_dir():
        raise UsageError(asked, "it is a file", "Name a folder with --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file():
        raise UsageError(
            asked,
            f"it holds other files and no {marker}",
            "Name a new or empty folder with --out, so that nothing is lost",
        )
    check_writable(folder.parent)
