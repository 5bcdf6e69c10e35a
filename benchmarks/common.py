"""What every benchmark shares: interleaved timing, what a figure depends on, result files."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from fudlr.common.device import versions
from fudlr.common.files import write_json

from fudlr_ext import _C

RESULTS = Path(__file__).parent / "results"


# Result files do not count: one that is written training by training would mark itself.
NO_RESULTS = ":(top,exclude)benchmarks/results"
CHANGES = ("status", "--porcelain", "--untracked-files=no", ":/", NO_RESULTS)


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def describe() -> dict[str, Any]:
    """CPU, cores, threads, instruction set, load, versions and commit."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": _C.isa(),
        "load": os.getloadavg(),
        "system": platform.platform(),
        "versions": versions(),
        "commit": _git("rev-parse", "--short", "HEAD") + "-dirty" * bool(_git(*CHANGES)),
    }


def write_result(path: Path, command: str, **found: Any) -> None:
    """Write a result file: the command that made it, the machine, and what was found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"command": command, "machine": describe(), **found})
    print(f"written: {path}")


def bar(name: str, measured: float, threshold: float, *, least: bool = True) -> dict[str, Any]:
    """What was asked beside what was measured: at least `threshold`, or at most."""
    met = measured >= threshold if least else measured <= threshold
    return {"bar": name, "measured": measured, "threshold": threshold, "met": bool(met)}


def interleaved(
    work: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, dict[str, float | list[float]]]:
    """Run all pieces in turn `repeats` times, so that load disturbs all alike; one warm-up round.

    Returns:
        For each: medians `cpu_s` (of this process, all threads) and `wall_s`, and all of them,
        `cpu_all_s` and `wall_all_s`.
    """
    cpu: dict[str, list[float]] = {name: [] for name in work}
    wall: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(repeats + 1):
        for name, piece in work.items():
            start, used = time.perf_counter(), time.process_time()
            piece()
            if round_:
                cpu[name].append(time.process_time() - used)
                wall[name].append(time.perf_counter() - start)
    return {
        name: {
            "cpu_s": statistics.median(cpu[name]),
            "wall_s": statistics.median(wall[name]),
            "cpu_all_s": cpu[name],
            "wall_all_s": wall[name],
        }
        for name in work
    }
