"""What CUDA costs those who have no GPU: its compilation, and the emulated tests of every build.

    python benchmarks/cuda_build.py [--repeats 2] [--no-tests]

Builds the last commit in fresh clones without CUDA and with it, in turn, as a user does (setup.py,
with as many jobs as there are cores), and runs the emulated tests as CI does (their own library is
built within them). Writes results/cuda_build.json: wall and CPU seconds, the difference, and what
each kernel's file took. The bars: two minutes for the build, three for the tests.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import describe
from fudlr.common.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "cuda_build.json"
BUILD_BAR, TESTS_BAR = 120.0, 180.0


def timed(command: list[str], **given) -> dict[str, float]:
    """Wall and CPU seconds of a command and all that it starts; it must succeed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True, **given)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu}


def build(cuda: str) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of one fresh build, configuration included, and of each CUDA source in it."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FUDLR_CUDA": cuda,
    }
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        timed(["git", "clone", "--quiet", str(ROOT), str(clone)])
        seconds = timed(
            [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=clone, env=environment
        )
        (log,) = clone.rglob(".ninja_log")
        return seconds, sources(log)


def sources(log: Path) -> dict[str, float]:
    """Wall seconds of each file of csrc/cuda, from Ninja's log."""
    found = {}
    for line in log.read_text(encoding="utf-8").splitlines()[1:]:
        begin, end, _, output, _ = line.split("\t")
        if "/cuda/" in output or "cuda_bindings" in output:
            name = "bindings" if "cuda_bindings" in output else Path(output).stem
            found[name] = (int(end) - int(begin)) / 1e3
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--no-tests", action="store_true", help="builds alone")
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error(f"--repeats {given.repeats}: give at least 1")
    builds = {"OFF": [], "ON": []}
    files = {}
    for repeat in range(given.repeats):
        for cuda, times in builds.items():
            seconds, own = build(cuda)
            times.append(seconds)
            files = own or files
            done = f"{repeat + 1} of {given.repeats}"
            print(f"{done}: CUDA {cuda} {seconds['wall']:.0f} s", flush=True)
    walls = {cuda: statistics.median(t["wall"] for t in times) for cuda, times in builds.items()}
    added = walls["ON"] - walls["OFF"]
    result = {
        "command": f"python benchmarks/cuda_build.py --repeats {given.repeats}",
        "machine": describe(), "nvcc": version(),
        "builds": builds, "added_seconds": added, "build_bar": BUILD_BAR,
        "build_met": added <= BUILD_BAR, "sources": files,
    }  # fmt: skip
    if not given.no_tests:
        tests = timed([sys.executable, "-m", "pytest", "tests/emu", "-q", "-n", "2",
                       "--dist", "loadfile"], cwd=ROOT)  # fmt: skip
        result |= {"tests": tests, "tests_bar": TESTS_BAR, "tests_met": tests["wall"] <= TESTS_BAR}
        print(f"emulated tests {tests['wall']:.0f} s")
    write_json(RESULT, result)
    print(f"CUDA adds {added:.0f} s to the build; {RESULT} is written")


def version() -> str:
    said = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    return next(line.strip() for line in said.splitlines() if "release" in line)


if __name__ == "__main__":
    main()
