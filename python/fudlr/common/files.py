"""Files that are either whole or absent, and folders that nobody else's work is lost in.

A file or folder is written under a temporary name, flushed, and renamed. A folder written here
carries a marker with the names that were put into it. Only a folder with that marker is replaced,
and only where every name in it is one of ours: anything else is refused before long work.
"""

from __future__ import annotations

import fnmatch
import glob
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from fudlr.common.errors import DataError, FudlrError, UsageError
from fudlr.common.exchange import exchange
from fudlr.common.held import held, is_abandoned
from fudlr.common.parallel import by_first, ranks, thrown_away, writes
from fudlr.common.reading import read_json

if TYPE_CHECKING:
    import polars as pl

MARKER = ".fudlr.json"
"""The marker: {"kind": ..., "files": [names relative to the folder]}."""

WRITING = ".fudlr.writing"
"""Within a folder that is not in its place yet; held by the process that writes it."""

STORE_FILES = ("rows-*.safetensors", "projection-*.safetensors", "training.safetensors",
               "manifest.json", "points.json", ".lock")  # fmt: skip
"""Names in a folder of gradients."""

ADDED = {
    "store": STORE_FILES,
    "run": ("store/*", "store.recording/*"),
    "result": ("retrainings/*.safetensors", "retrained/*"),
    "sweep": ("sweep.*", "points/*.json", "retrainings/*.safetensors"),
    "comparison": ("comparison.*", "*/*.json", "*/*.safetensors"),
}
"""What our own commands add to a folder of each kind after it was written, as patterns."""


class _Marker(BaseModel):
    kind: str
    files: list[str]


_PROBE = "fudlr"
_TEMPORARY = re.compile(r"\.(.+?)\.[0-9a-f]{8}(\.\w+)?")


def _sync(path: Path, mode: int | None = None) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        if mode is not None:  # safetensors' files are their owner's alone, whatever the umask
            os.fchmod(handle, mode)
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    """A name next to `path` that nothing has yet."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it and rename it over `path`; of
    several ranks the first one does, and what the others put there is thrown away.

    Raises:
        UsageError: `path` is a link, a folder, a device or another special file.
    """
    if not writes(path):
        with thrown_away() as folder:
            yield folder / path.name
        return
    _check_regular(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with held(temporary):
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            _sync(temporary, mode)
            temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, kind: str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success flush it and put it in `path`'s place.

    Args:
        path: Where the folder goes. One of the same kind that is there already is replaced.
        kind: What the folder holds, as its marker says: `run`, `result`, `adapter`, …

    All ranks go on once it is there; others than the first write into a folder that is thrown away.

    Raises:
        UsageError: `check_replaceable` refuses `path`, before and after the work.
    """
    check_replaceable(path, kind)
    if not writes(path):
        with thrown_away() as folder:
            yield folder
            ranks().agree()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_left(path)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        with held(temporary / WRITING):
            mode = stat.S_IMODE((temporary / WRITING).stat().st_mode)
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file, None if file.is_dir() else mode)
            replace_folder(temporary, path, kind)
            (path / WRITING).unlink()
        ranks().agree()
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def _clear_left(path: Path) -> None:
    """Remove what killed processes left beside `path`: a new folder in the making, or an earlier
    one that was replaced."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}.*{glob.escape(path.suffix)}"):
        ours = _TEMPORARY.fullmatch(left.name) and not left.is_symlink()
        if ours and (is_abandoned(left / WRITING) or _is_replaced(left)):
            shutil.rmtree(left, ignore_errors=True)


def _is_replaced(left: Path) -> bool:
    if (left / WRITING).exists() or not (left / MARKER).is_file():
        return False
    try:
        return _why_not_ours(left, read_json(left / MARKER, _Marker).kind) is None
    except DataError:
        return False


def _mark(folder: Path, kind: str) -> None:
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()} - {WRITING}
    write_json(folder / MARKER, {"kind": kind, "files": sorted(files)})


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Write a Parquet file, whole or not at all."""
    # Given a path, polars would expand a ~ in it; of a disk that is full it says "invalid thrift".
    content = io.BytesIO()
    table.write_parquet(content)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


@by_first
def check_writable(folder: Path) -> None:
    """Raise before long work where `folder` cannot be created or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{_PROBE}.{secrets.token_hex(4)}"
        probe.touch(exist_ok=False)
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise FudlrError(
            f"results were to be written to {folder}",
            f"it cannot be written ({error.strerror})",
            "Choose another folder with --out, or change its permissions",
        ) from error


def _check_regular(path: Path, found: str | None = None) -> None:
    found = found or _special(path) or ("it is a folder" if path.is_dir() else None)
    if found is not None:
        asked = f"a file was to be written to {path}"
        raise UsageError(asked, found, "Name a regular file, or a new name")


def check_file(path: Path) -> None:
    """Refuse before long work a file, named by a user, that cannot be written or is not theirs.

    Raises:
        UsageError: `path` is a link, a folder or a special file, or lies in a folder of ours.
        FudlrError: The folder above it cannot be written.
    """
    _check_regular(path, _special(path) or _within_ours(path))
    check_writable(path.parent)


@by_first
def check_replaceable(folder: Path, kind: str) -> None:
    """Refuse to replace anything but an earlier folder of the same kind that we wrote.

    Args:
        folder: Where a folder of results is to go.
        kind: What it is to hold; see `atomic_folder`.

    Raises:
        UsageError: `folder` is a link, a mount point, a special file or the current folder; or it
            lies in another folder of ours; or it is not empty and has no marker of this kind, or
            holds names that we did not put there.
        FudlrError: The folder above it cannot be written.
    """
    asked = f"a folder ({kind}) was to be written to {folder}"
    folder = Path(os.path.abspath(folder))
    found, remedy = _special(folder) or _within_ours(folder), "Name a new folder with --out"
    if found is None and folder.exists() and not folder.is_dir():
        found = "it is a file"
    elif found is None and folder == Path.cwd():
        found = "it is the current folder"
        remedy = f"Name a folder below it, such as {kind}"
    elif found is None and folder.is_mount():
        found = "it is a mount point, which cannot be replaced"
        remedy = f"Name a folder below it, such as {folder / kind}"
    elif found is None and folder.is_dir() and _holds_something(folder):
        found = _why_not_ours(folder, kind)
        remedy = "Name a new or empty folder with --out, so that nothing is lost"
    if found is not None:
        raise UsageError(asked, found, remedy)
    check_writable(folder.parent)


@by_first
def replace_folder(new: Path, path: Path, kind: str) -> None:
    """Put the folder `new`, which is ours, in `path`'s place; an earlier one there is removed.

    Raises:
        UsageError: As `check_replaceable`.
    """
    check_replaceable(path, kind)
    _mark(new, kind)
    if path.exists():
        exchange(new, path, _beside(path))
        shutil.rmtree(new)
    else:
        new.replace(path)
    _sync(path.parent)


@by_first
def remove_folder(folder: Path, kind: str) -> None:
    """Remove a folder of ours; nothing where there is none.

    Raises:
        UsageError: It is not ours, or holds something else too.
    """
    if folder.exists():
        check_replaceable(folder, kind)
        shutil.rmtree(folder)


def clear_unfinished(folder: Path) -> None:
    """Remove from a folder of ours the files that killed processes left half-written there."""
    marker = read_json(folder / MARKER, _Marker)
    for path in folder.rglob(".*"):
        ours = _is_ours(path, folder, marker.files, ADDED.get(marker.kind, ()))
        if ours and _meant(path) != path.name and is_abandoned(path):
            path.unlink()


@by_first
def claim_folder(folder: Path, kind: str) -> None:
    """Make `folder` ours, to write files into one by one; one that is ours already stays as it is,
    without what killed writes left there.

    Raises:
        UsageError: As `check_replaceable`.
    """
    check_replaceable(folder, kind)
    check_writable(folder)
    if not (folder / MARKER).is_file():
        _mark(folder, kind)
    clear_unfinished(folder)


def _special(path: Path) -> str | None:
    """What is at `path`, where that is neither nothing, nor a regular file, nor a folder."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return None
    if stat.S_ISLNK(mode):
        return f"it is a link to {os.readlink(path)}; name that place itself"
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        return "it is a device, pipe or socket"
    return None


def _within_ours(path: Path) -> str | None:
    """In which folder of ours `path` lies, where nothing of that name belongs; else None."""
    path = Path(os.path.abspath(path))
    for parent in path.parents:
        if (parent / MARKER).is_file():
            kind = read_json(parent / MARKER, _Marker).kind
            name = path.relative_to(parent).as_posix()
            inner = [f"{name}/x{ending}" for ending in (".json", ".safetensors")]
            added = (fnmatch.fnmatchcase(i, p) for i in inner for p in ADDED.get(kind, ()))
            return None if any(added) else f"it lies in {parent}, where fudlr keeps a {kind}"
    return None


def _holds_something(folder: Path) -> bool:
    """Whether anything is in it, but for what a process left that was killed as it made it ours."""
    claims = (path for path in folder.glob(".*") if _TEMPORARY.fullmatch(path.name))
    for path in claims if not (folder / MARKER).exists() else ():
        if _meant(path) in (MARKER, _PROBE) and is_abandoned(path):
            path.unlink(missing_ok=True)
    return any(folder.iterdir())


def _why_not_ours(folder: Path, kind: str) -> str | None:
    """Why `folder` is not one of `kind` that we wrote with nothing else in it; None if it is."""
    if not (folder / MARKER).exists():
        return f"it holds other files, and no {MARKER} that says that fudlr wrote it"
    try:
        marker = read_json(folder / MARKER, _Marker)
    except DataError as error:
        return f"its {MARKER} is damaged: {error.found}"
    if marker.kind != kind:
        return f"it holds a folder of another kind: {marker.kind}"
    foreign = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not _is_ours(path, folder, marker.files, ADDED.get(kind, ()))
    )
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        return f"it also holds what fudlr did not put there: {', '.join(foreign[:3])}{more}"
    return None


def _is_ours(path: Path, folder: Path, written: list[str], added: tuple[str, ...]) -> bool:
    name = path.relative_to(folder).as_posix()
    if path.is_symlink():
        return False
    if path.is_dir():
        return any(other.startswith(name + "/") for other in written) or any(
            fnmatch.fnmatchcase(name + "/", pattern.rpartition("/")[0] + "/") for pattern in added
        )
    meant = _meant(path)
    name = (path.relative_to(folder).parent / meant).as_posix()
    if meant in (MARKER, _PROBE, WRITING) or name in written:
        return True
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in added):
        return False
    gradients = path.parent.name in ("store", "store.recording")
    return not gradients or any(fnmatch.fnmatchcase(meant, each) for each in STORE_FILES)


def _meant(path: Path) -> str:
    """The name of a file, or the one that a killed write of it was meant to have."""
    left = _TEMPORARY.fullmatch(path.name)
    return path.name if left is None else left[1] + (left[2] or "")
