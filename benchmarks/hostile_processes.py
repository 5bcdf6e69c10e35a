"""Commands as forked processes, on disks of their own; for hostile_disk.py."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fudlr import cli

DISK = 64 * 2**20  # bytes


class Ended(NamedTuple):
    code: int  # negative: the signal that ended it
    err: str
    seconds: float


def start(arguments: list[str], folder: Path, err: Path, *, out: str, plain: bool) -> int:
    """Fork a process that is the command, without a root's rights where `plain`; its id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        if plain:
            drop_rights()
        for number, path in ((1, out), (2, str(err))):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            os.dup2(os.open(path, flags, 0o600), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = ["fudlr", *arguments]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 71
        sys.stdout.flush()  # as the end of a process does
    except BaseException as error:
        os.write(2, f"Traceback: {error!r}".encode())
    finally:
        os._exit(code)


def drop_rights() -> None:
    """Give up all capabilities, so that a root's files have permissions too."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def run(
    arguments: list[str],
    folder: Path,
    during: Callable[[int], object] = lambda _: None,
    *,
    out: str = os.devnull,
    plain: bool = False,
) -> Ended:
    """Run a command; `during` is given its process id, and may disturb it."""
    with tempfile.TemporaryDirectory() as words:
        err, begin = Path(words) / "err", time.monotonic()
        child = start(arguments, folder, err, out=out, plain=plain)
        during(child)
        status = os.waitpid(child, 0)[1]
        seconds = time.monotonic() - begin
        said = err.read_text(errors="replace") if err.exists() else ""
    return Ended(os.waitstatus_to_exitcode(status), said, seconds)


def running(child: int) -> bool:
    """Whether the process has not ended; it is not reaped."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


@contextmanager
def disk(scene: Path) -> Iterator[Path]:
    """A disk of its own, always in the same place, with what is in `scene`."""
    place = scene.with_name("disk")
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", place], check=True)
    try:
        shutil.copytree(scene, place, dirs_exist_ok=True)
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def free(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize
