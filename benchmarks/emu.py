"""All cases of the emulated GPU kernels, all schedules, twenty seeds, races and sanitizers.

    make emu-full

Writes results/emu.json. No GPU takes part: what this proves, and what not, is in docs/cuda.md.
"""

import json
import subprocess
import sys
from pathlib import Path

from fudlr.files import write_json
from machine import describe

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "emu"))
from emulation import build, separately  # noqa: E402

SEEDS = 20


def run(variant, seeds, subset):
    build(f"emulated_{variant}")
    options = ["--seeds", str(seeds), "--subset", str(subset)]
    done = separately("run_cases.py", variant, *options, variant=variant)
    if done.returncode not in (0, 1):
        raise subprocess.SubprocessError(f"{variant}: {done.stderr[-2000:]}")
    return {**json.loads(done.stdout), "subset": subset}


def main():
    parts = [run("plain", SEEDS, 1), run("check", 1, 1), run("sanitize", 1, 1)]
    write_json(
        HERE / "results" / "emu.json",
        {"command": "make emu-full", "machine": describe(), "seeds": SEEDS, "parts": parts},
    )
    for part in parts:
        print(part["variant"], part["cases"], "cases", part["disagreements"], "disagreements")
    sys.exit(any(part["disagreements"] or part.get("races") for part in parts))


if __name__ == "__main__":
    main()
