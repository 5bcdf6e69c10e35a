"""Builds and loads the emulated kernels, steers their schedule, and reads what was watched."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "emulated"
LIBRARIES = ("fudlr", "fudlr_grad", "fudlr_decoder")
ORDERS = {"forward": 0, "reverse": 1, "random": 2}


def _tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise RuntimeError(f"the emulated kernels need {name}: install .[test]")
    return found


@cache
def build(*targets: str) -> None:
    """Build these targets of tests/emu/CMakeLists.txt; one process at a time, and incremental."""
    import fcntl

    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = [
            _tool("cmake"), "-S", str(HERE), "-B", str(BUILD), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}",
        ]  # fmt: skip
        for command in (configure, [_tool("cmake"), "--build", str(BUILD), "--target", *targets]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")


def library_path(name: str) -> Path:
    """The file of a library, such as emulated_check."""
    return BUILD / f"lib{name}.so"


@cache
def load(name: str) -> ctypes.CDLL:
    """Build and load one library; `emulated_*` then serve torch.ops.fudlr_emulated and its kin.

    Only one emulated library can be loaded in a process: they register the same ops.
    """
    build(name)
    if name.startswith("emulated"):
        define_ops()
    library = ctypes.CDLL(str(library_path(name)))
    library.emulator_report.restype = ctypes.c_char_p
    library.emulator_schedule.argtypes = [ctypes.c_int, ctypes.c_uint64]
    library.emulator_threads.restype = ctypes.c_uint64
    return library


@cache
def define_ops() -> list[torch.library.Library]:
    """Define torch.ops.fudlr_emulated and so on, with the schemas of torch.ops.fudlr and so on."""
    import fudlr_ext  # noqa: F401  registers the schemas

    libraries = {name: torch.library.Library(f"{name}_emulated", "DEF") for name in LIBRARIES}
    for schema in torch._C._jit_get_all_schemas():
        name, _, _ = schema.name.partition("::")
        if name in libraries:
            libraries[name].define(str(schema).removeprefix(f"{name}::"))
    return list(libraries.values())


@contextmanager
def schedule(library: ctypes.CDLL, order: str, seed: int = 0) -> Iterator[None]:
    """Run kernels in this order of threads, warps and blocks for a while."""
    library.emulator_schedule(ORDERS[order], seed)
    try:
        yield
    finally:
        library.emulator_schedule(ORDERS["forward"], 0)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill new tensors with NaN, so that what a kernel leaves unwritten is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def report(library: ctypes.CDLL) -> dict:
    """What the check variant saw since the last emulator_reset()."""
    return json.loads(library.emulator_report())


def source_lines(name: str, codes: list[int]) -> list[str]:
    """Where in the sources these code addresses of a library are, if addr2line is there."""
    tool = shutil.which("addr2line")
    if tool is None or not codes:
        return [hex(code) for code in codes]
    command = [tool, "-e", str(library_path(name)), *(hex(code - 1) for code in codes)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [os.path.relpath(line, ROOT) for line in lines]


def separately(script: str, *arguments: str, variant: str) -> subprocess.CompletedProcess:
    """Run a script of this folder in a process of its own, with what the variant needs."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    if variant == "sanitize":
        compiler = os.environ.get("CXX", "g++")
        environment["LD_PRELOAD"] = subprocess.run(
            [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        # Python frees nothing at exit, and torch's own allocations are not what is looked at.
        environment["ASAN_OPTIONS"] = "detect_leaks=0:exitcode=99"
        environment["UBSAN_OPTIONS"] = "print_stacktrace=1:exitcode=99"
    return subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def main() -> None:
    """Build what the tests load: `python tests/emu/emulation.py`, before they wait for it."""
    build("emulated_plain", *(f"seeded_{variant}" for variant in ("plain", "check", "sanitize")))


if __name__ == "__main__":
    main()
