"""What CUDA costs those who have no GPU: its compilation, and the emulated tests of every build.

    python benchmarks/cuda_build.py [--repeats 2] [--jobs 2] [--no-tests]

Builds the library in fresh folders without CUDA and with it, in turn, with as many jobs as CI has
cores, and runs the emulated tests as CI does (pytest -n JOBS on tests/emu; their own library is
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

import pybind11
import torch
from fudlr.errors import UsageError
from fudlr.files import write_json
from machine import describe

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


def build(cuda: str, jobs: int, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of one fresh build, configuration included, and of each CUDA source in it."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "FUDLR_TORCH_DIR": Path(torch.__file__).parent,
        "FUDLR_TORCH_VERSION": torch.__version__,
        "FUDLR_TORCH_CXX11_ABI": int(torch._C._GLIBCXX_USE_CXX11_ABI),
        "FUDLR_OUTPUT": folder / "out" / "_C.so",
        "FUDLR_CUDA": cuda,
    }
    configured = timed(
        ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja",
         *(f"-D{name}={value}" for name, value in settings.items())], env=environment)  # fmt: skip
    built = timed(["cmake", "--build", str(folder), "--parallel", str(jobs)], env=environment)
    return {name: configured[name] + built[name] for name in built}, sources(folder)


def sources(folder: Path) -> dict[str, float]:
    """Wall seconds of each file of csrc/cuda, from Ninja's log."""
    found = {}
    for line in (folder / ".ninja_log").read_text(encoding="utf-8").splitlines()[1:]:
        begin, end, _, output, _ = line.split("\t")
        if "/cuda/" in output or "cuda_bindings" in output:
            name = "bindings" if "cuda_bindings" in output else Path(output).stem
            found[name] = (int(end) - int(begin)) / 1e3
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--no-tests", action="store_true", help="builds alone")
    given = parser.parse_args()
    if given.repeats < 1:
        raise UsageError("builds were to be timed", f"{given.repeats} repeats", "Give at least 1")
    builds = {"OFF": [], "ON": []}
    files = {}
    for repeat in range(given.repeats):
        for cuda, times in builds.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds, own = build(cuda, given.jobs, Path(folder))
            times.append(seconds)
            files = own or files
            done = f"{repeat + 1} of {given.repeats}"
            print(f"{done}: CUDA {cuda} {seconds['wall']:.0f} s", flush=True)
    walls = {cuda: statistics.median(t["wall"] for t in times) for cuda, times in builds.items()}
    added = walls["ON"] - walls["OFF"]
    result = {
        "command": "python benchmarks/cuda_build.py", "machine": describe(), "jobs": given.jobs,
        "nvcc": version(), "builds": builds, "added_seconds": added,
        "build_bar": BUILD_BAR, "build_met": added <= BUILD_BAR, "sources": files,
    }  # fmt: skip
    if not given.no_tests:
        tests = timed([sys.executable, "-m", "pytest", "tests/emu", "-q", "-n", str(given.jobs),
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
