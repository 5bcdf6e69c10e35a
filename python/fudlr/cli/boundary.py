"""The one place where errors of a command become words, and other libraries are kept quiet.

With `--debug`, or FUDLR_DEBUG=1, errors keep their traceback and other libraries may speak.
"""

from __future__ import annotations

import errno
import os
import re
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from fudlr.common.errors import FudlrError
from fudlr.common.terminal import say

DEBUG = "FUDLR_DEBUG"
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What other libraries are told, where the user has not told them anything else."""
OS_ERRORS = {
    errno.ENOSPC: ("the disk is full", "Free some space, or write to another disk"),
    errno.EDQUOT: ("the disk quota is used up", "Free some space, or write to another disk"),
    errno.EROFS: ("the file system is read-only", "Write to another place"),
    errno.EACCES: ("permission is denied", "Change its permissions, or use another place"),
    errno.EPERM: ("the operation is not permitted", "Change its owner, or use another place"),
    errno.ENOENT: ("there is no such file or folder", "Check the name"),
    errno.ENOTDIR: ("a part of the path is no folder", "Check the name"),
    errno.EISDIR: ("it is a folder", "Name a file"),
    errno.ENAMETOOLONG: ("the name is too long", "Give a shorter one"),
    errno.ELOOP: ("links lead round in a circle", "Name the place itself"),
    errno.EMFILE: ("too many files are open", "Raise `ulimit -n`"),
    errno.ENOMEM: ("memory does not suffice", "Use fewer --processes, or less data"),
    errno.EIO: ("the disk reports an error", "Check the disk"),
}
LESS = "Use fewer --processes, --set debias.rows=stream, a smaller batch, or less data"
FORMATS = {"safetensors", "safetensors_rust", "polars", "json", "yaml", "pydantic_core"}
"""Libraries whose errors mean that a file is not what it should be."""


class Group(TyperGroup):
    """The commands; what any of them raises is a `FudlrError`, or an exit of the command line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(1) from None
        except Exception as error:
            if is_debug() or hasattr(error, "exit_code") or is_expected(error):
                raise
            raise in_words(error, f"`fudlr {ctx.invoked_subcommand}` was to run") from error


def in_words(error: Exception, asked: str = "a command was to be read") -> FudlrError:
    """An error that nobody raised on purpose, as one for a person."""
    return FudlrError(asked, *explain(error))


def is_debug() -> bool:
    """Whether the user wants tracebacks."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def quieten() -> None:
    """Keep other libraries' bars, logs and warnings out; our own warnings are one line each."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.showwarning = _show


def _show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if category.__module__.partition(".")[0] in ("fudlr", "fudlr_ext"):
        say(f"warning: {message}", "yellow")


def is_expected(error: BaseException) -> bool:
    """Raised on purpose, by the method or by the engine: shown in words, without a traceback."""
    # By name, since to import the engine takes seconds.
    return {"FudlrError", "EngineError"} & {kind.__name__ for kind in type(error).__mro__} != set()


def explain(error: BaseException) -> tuple[str, str]:
    """What an error that nobody raised on purpose means, and what to do: (found, remedy)."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    # Rust libraries put the system's number into the text of errors of their own.
    number = re.search(r"\(os error (\d+)\)", str(error))
    if isinstance(error, OSError) or number:
        code = int(number[1]) if number else getattr(error, "errno", None)
        words, remedy = OS_ERRORS.get(code or 0, (os.strerror(code) if code else text, "Try again"))
        name = getattr(error, "filename", None)
        return f"{words}: {os.fsdecode(name)}" if name else words, remedy
    kind = type(error).__name__
    cases = (
        (isinstance(error, MemoryError) or "OutOfMemory" in kind or "allocate memory" in text,
         "memory does not suffice", LESS),
        (kind == "BrokenProcessPool",
         "a worker process was killed, mostly for want of memory", LESS),
        (type(error).__module__.partition(".")[0] in FORMATS,
         f"a file is damaged or has another form ({text})", "Restore it, or make it again"),
        (isinstance(error, UnicodeError),
         f"text that is no valid Unicode ({text})", "Save the file as UTF-8"),
        (isinstance(error, ImportError),
         f"a library is missing or broken ({text})", "Install fudlr-ext[recommender] again"),
        (True, f"an error that was not expected ({kind}: {text})",
         "Run it again with `fudlr --debug …` for the traceback, and report it"),
    )  # fmt: skip
    return next((found, remedy) for holds, found, remedy in cases if holds)
