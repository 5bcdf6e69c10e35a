"""What a figure depends on besides the code: machine, versions, commit."""

import os
import platform
import subprocess
from pathlib import Path

import torch
from fudlr.run import versions

from fudlr_ext import _C


def describe() -> dict:
    """CPU, cores, threads, instruction set, versions and commit, as plain data."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": _C.isa(),
        "system": platform.platform(),
        "versions": versions(),
        "commit": commit,
    }
