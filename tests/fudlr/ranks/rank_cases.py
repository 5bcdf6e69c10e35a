"""Real processes that work together, started from a server that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["fudlr.cli", "fudlr.debias", "fudlr.output", "fudlr.verify", "transformers.trainer"]
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(count: int, work: Callable[..., Any], *args: Any, folder: Path) -> list[Any]:
    """`count` processes that each call `work(*args)` with the environment that torchrun gives; what
    they print is in `folder`."""
    port, made = free_port(), []
    for rank in range(count):
        about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        process = CONTEXT.Process(target=_run, args=(about, folder, work, args))
        process.start()
        made.append(process)
    return made


def wait(processes: list[Any], seconds: float = 60) -> list[int]:
    """Their exit codes; a process that still runs is ended, and fails the test."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.1, until - time.monotonic()))
    hung = [process for process in processes if process.exitcode is None]
    for process in hung:
        process.kill()
        process.join()
    assert not hung, f"{len(hung)} of {len(processes)} processes hung"
    return [process.exitcode for process in processes]


def together(count: int, work: Callable[..., Any], *args: Any, folder: Path) -> None:
    """Let `count` processes do `work`, all of them well."""
    codes = wait(start(count, work, *args, folder=folder))
    assert codes == [0] * count, said(folder)


def said(folder: Path) -> str:
    """What processes printed."""
    return "\n".join(path.read_text() for path in sorted(folder.glob("said-*")))


def command(*words: Any) -> None:
    """Run `fudlr` with these words."""
    from fudlr.cli import main

    sys.argv = ["fudlr", *map(str, words)]
    main()


def _run(about: dict[str, int], folder: Path, work: Callable[..., Any], args: Any) -> None:
    if about["WORLD_SIZE"] > 1:
        os.environ |= {name: str(value) for name, value in about.items()}
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    os.environ["FUDLR_QUIET"] = "1"
    torch.set_num_threads(1)
    out = (folder / f"said-{about['WORLD_SIZE']}-{about['RANK']}").open("w")
    os.dup2(out.fileno(), 1), os.dup2(out.fileno(), 2)
    work(*args)
