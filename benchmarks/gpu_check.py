"""All that only a GPU can show, in one command and one file: `make gpu-check`.

    make gpu-check                                        # on a machine with a GPU
    python benchmarks/gpu_check.py --rehearse --out FILE  # without one: on a GPU that is none
    python benchmarks/gpu_check.py --python python3       # libraries and nvcc are there: no network

The parts are `install` (the library with its GPU kernels), `tests` (pytest -m gpu), `demo` (trained
and debiased on the GPU, beside the CPU's), `request` (the CPU's adapter debiased on the GPU) and
`rates` (kernels beside plain PyTorch, a copy and a matrix product). One that fails says why, and
the others go on. The file has every part's figures and, where it failed, the end of its log.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 8.0
LEAST = 5.0
"""Minutes in all, and at least those after the installation."""
SAME_MASK = 0.99
"""Share of the training samples that both masks treat alike, at least."""
SAME_CHANGE = 0.02
"""Relative difference of the changes of ARP, at most."""
TAIL = 60  # lines of a failed part's log
NVCC = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime",
        "nvidia-cuda-cccl")  # fmt: skip
LIBRARIES = "import torch, transformers, peft, polars, pydantic, typer, pytest, xdist, setuptools"
KERNELS = "from fudlr_ext import _C; import sys; sys.exit('cuda' not in _C.devices())"
GPU_TESTS = ("tests/gpu", "tests/benchmarks/test_gpu_cases.py")
OBJECTIVE = "arp"


class Failed(Exception):
    """A part is not as it should be; the text says how."""


@dataclass
class Check:
    """The parts' outcomes, written after each of them.

    Attributes:
        out: The file.
        rehearse: Whether there is no GPU, and one is pretended.
        end: When the time is over, by `time.monotonic`.
    """

    out: Path
    rehearse: bool
    end: float
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Of logs and of what the demos write."""
        return self.out.with_suffix("")

    def left(self, most: float) -> float:
        """Seconds that a command may take: `most` on a machine with a GPU, else all there are."""
        left = self.end - time.monotonic()
        return max(20.0, left if self.rehearse else min(most, left))

    def part(self, name: str, work: Callable[[], dict[str, Any]]) -> bool:
        """Do a part, note its outcome, and say it."""
        start = time.monotonic()
        try:
            found = {"passed": True, **work()}
        except Failed as error:
            found = {"passed": False, "why": str(error), "log": tail(self.folder / f"{name}.log")}
        except Exception as error:  # a fault of this script costs its part alone
            found = {"passed": False, "why": f"{type(error).__name__}: {error}"}
        found["seconds"] = round(time.monotonic() - start, 1)
        self.record.setdefault("parts", {})[name] = found
        self.out.write_text(json.dumps(self.record, indent=2) + "\n", encoding="utf-8")
        told = {k: v for k, v in found.items() if k not in ("passed", "log", "report", "doctor")}
        print(f"{'pass' if found['passed'] else 'FAIL'}  {name}: {told}", flush=True)
        return bool(found["passed"])

    def start(self, name: str, command: Sequence[str], threads: int = 0) -> subprocess.Popen:
        """Begin a command whose log is the part's."""
        environment = {**os.environ, "FUDLR_QUIET": "1"}
        environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        with (self.folder / f"{name}.log").open("ab") as log:
            log.write(f"$ {' '.join(map(str, command))}\n".encode())
            log.flush()
            return subprocess.Popen(
                [str(each) for each in command], stdout=log, stderr=subprocess.STDOUT,
                cwd=ROOT, env=environment,
            )  # fmt: skip

    def finish(self, running: subprocess.Popen, most: float, allowed: Sequence[int] = (0,)) -> int:
        """Wait for a command.

        Raises:
            Failed: It took too long, or its exit code is none of those allowed.
        """
        limit = self.left(most)
        try:
            code = running.wait(limit)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            raise Failed(f"it was not done after {limit:.0f} s") from None
        if code not in allowed:
            raise Failed(f"exit code {code}")
        return code

    def run(self, name: str, command: Sequence[str], most: float, **options: Any) -> int:
        """Run a command to its end."""
        return self.finish(self.start(name, command), most, **options)


def tail(log: Path) -> list[str]:
    """The last lines of a log; none where there is no log."""
    if not log.is_file():
        return []
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]


def install(check: Check, python: Path) -> dict[str, Any]:
    """Build the library with GPU kernels where it is not, and see that it would use the GPU."""
    if not check.rehearse and not runs(python, KERNELS):
        os.environ |= {"FUDLR_CUDA": "ON", **architecture()}
        environment = python.parent.parent
        if not python.is_file():
            check.run("install", [sys.executable, "-m", "venv", environment], 60)
        # The compiler has to be there before the library is built; where the system has one, that.
        if not shutil.which("nvcc"):
            pip = [python, "-m", "pip", "install", "--quiet"]
            check.run("install", [*pip, *NVCC], 120, allowed=range(256))
        if runs(python, LIBRARIES):
            check.run("install", [python, "setup.py", "build_ext", "--inplace"], 600)
        else:
            (environment / ".installed").unlink(missing_ok=True)
            check.run("install", ["make", f"VENV={environment}", f"{environment}/.installed"], 600)
    asked = [str(python), "-m", "fudlr", "doctor"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=ROOT)
    if said.returncode:
        raise Failed(f"`fudlr doctor` does not run: {said.stderr.strip()[-500:]}")
    found = json.loads(said.stdout)
    if not check.rehearse and found["device"]["auto is"] != "cuda:0":
        raise Failed(f"the GPU would not be used: {found['device']['why']}")
    return {"doctor": found}


def runs(python: Path, code: str) -> bool:
    """Whether `code` runs there without an error."""
    try:
        asked = subprocess.run([str(python), "-c", code], capture_output=True, check=False)
    except OSError:
        return False
    return asked.returncode == 0


def architecture() -> dict[str, str]:
    """The setting by which kernels are assembled for this machine's GPUs alone, a faster build."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    found = sorted({line.strip().replace(".", "") for line in said.splitlines() if line.strip()})
    return {"FUDLR_CUDA_GPUS": ";".join(found)} if found else {}


def tests(check: Check, python: Path) -> dict[str, Any]:
    """The tests marked `gpu`."""
    report = check.folder / "tests.xml"
    command = [python, "-m", "pytest", "-q", "-m", "gpu", "-n", "4", "--dist", "worksteal",
               "-p", "no:cacheprovider", f"--junitxml={report}", *GPU_TESTS]  # fmt: skip
    # A limit that spares time for the other parts; 1 is for failed tests, which the report names.
    check.run("tests", command, 200, allowed=(0, 1))
    return judge_tests(report, check.rehearse)


def judge_tests(report: Path, rehearse: bool = False) -> dict[str, Any]:
    """Counts of a JUnit file.

    Raises:
        Failed: A test failed, or none ran; where rehearsed, skipped ones suffice.
    """
    cases = list(ET.parse(report).getroot().iter("testcase"))
    kinds = {"failed": ("failure", "error"), "skipped": ("skipped",)}
    names = {
        kind: [case for case in cases if any(case.find(tag) is not None for tag in tags)]
        for kind, tags in kinds.items()
    }
    failed, skipped = names["failed"], names["skipped"]
    counts = {"passed_tests": len(cases) - len(failed) - len(skipped),
              "failed": len(failed), "skipped": len(skipped)}  # fmt: skip
    if failed:
        first = ", ".join(f"{case.get('classname')}.{case.get('name')}" for case in failed[:5])
        raise Failed(f"{counts}; the first: {first}")
    if not (counts["passed_tests"] or (rehearse and skipped)):
        reasons = {str(case.find("skipped").get("message")) for case in skipped}  # type: ignore[union-attr]
        raise Failed(f"no test ran ({len(skipped)} skipped: {'; '.join(sorted(reasons)[:3])})")
    return counts


def fudlr(check: Check, python: Path, device: str) -> list[str | Path]:
    """The command, on a GPU that is none where rehearsed."""
    if check.rehearse and device == "cuda":
        return [python, ROOT / "tests" / "emu" / "pretended_command.py"]
    return [python, "-m", "fudlr"]


def demo_command(check: Check, python: Path, device: str) -> list[str | Path]:
    small = ["--small"] if check.rehearse else []
    where = check.folder / f"demo-{device}"
    return [*fudlr(check, python, device), "demo", "--out", where, "--device", device, *small]


def compare_demos(check: Check, python: Path) -> dict[str, Any]:
    """Trained and debiased on each device; how far the trainings agree says whose fault it is."""
    folders = [check.folder / f"demo-{device}" for device in ("cpu", "cuda")]
    texts = [(each / "run" / "train.json").read_text(encoding="utf-8") for each in folders]
    losses = [json.loads(text)["losses"][-1] for text in texts]
    apart = abs(losses[1] - losses[0]) / abs(losses[0])
    try:
        found = judge_pair(*(each / OBJECTIVE for each in folders), python)
    except Failed as error:
        raise Failed(f"{error}; the losses of the trainings are {apart:.1e} apart") from None
    return {**found, "losses_apart": apart}


def request(check: Check, python: Path) -> dict[str, Any]:
    """The CPU's adapter debiased on the GPU, as the CPU's demo was."""
    here = check.folder / "demo-cpu"
    if not (here / OBJECTIVE / "summary.json").is_file():
        raise Failed("the CPU's demo did not come to its end")
    out, force = check.folder / "request", ["--force"] if check.rehearse else []
    command = [*fudlr(check, python, "cuda"), "debias", here / "run", "--objective", OBJECTIVE]
    command += ["--out", out, "--device", "cuda", "--quick", *force]
    check.run("request", command, 100)
    return judge_pair(here / OBJECTIVE, out, python)


MASKS = """
import json, sys
import polars as pl
a, b = (pl.read_parquet(f"{folder}/mask.parquet") for folder in sys.argv[1:])
paired = a["sample_id"].equals(b["sample_id"])
print(json.dumps([paired, float((a["mask"] == b["mask"]).mean()) if paired else 0.0]))
"""


def judge_pair(cpu: Path, gpu: Path, python: Path | None = None) -> dict[str, Any]:
    """Two results of one request: the share of samples that both masks treat alike, ARP's changes.

    Raises:
        Failed: They differ by more than the limits, or the second is not of a GPU.
    """
    said = [json.loads((each / "summary.json").read_text(encoding="utf-8")) for each in (cpu, gpu)]
    # With the environment's libraries: this script may run where there are none.
    asked = [str(python or sys.executable), "-c", MASKS, *(str(each) for each in (cpu, gpu))]
    read = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    paired, same = json.loads(read)
    where = [each["device"]["device"] for each in said]
    if where[0] != "cpu" or not where[1].startswith("cuda"):
        raise Failed(f"results of a CPU and of a GPU were expected, and they are of {where}")
    if not paired:
        raise Failed("the masks are of different samples")
    changes = [each["after"]["arp"] - each["before"]["arp"] for each in said]
    apart = abs(changes[1] - changes[0]) / max(abs(changes[0]), 1e-12)
    found = {"same_mask": same, "arp_change": changes, "apart": apart,
             "way": said[1]["device"]["way"],
             "seconds_of_request": [each["cost"]["seconds"] for each in said]}  # fmt: skip
    if not same >= SAME_MASK or not apart <= SAME_CHANGE:
        raise Failed(
            f"the masks agree on {same:.2%} of the samples ({SAME_MASK:.0%} asked), the changes of "
            f"ARP are {changes[0]:.4g} and {changes[1]:.4g}, {apart:.1%} apart ({SAME_CHANGE:.0%})"
        )
    return found


def rates(check: Check, python: Path) -> dict[str, Any]:
    """Every kernel beside plain PyTorch, a copy and a matrix product."""
    report = check.folder / "rates.json"
    minutes = min(2.0, check.left(120) / 60)
    command = [python, "benchmarks/gpu.py", "--minutes", f"{minutes:.2f}", "--out", report]
    check.run("rates", command + ["--small"] * check.rehearse, 60 * minutes + 60, allowed=(0, 1))
    return judge_rates(report)


def judge_rates(report: Path) -> dict[str, Any]:
    """The rows of gpu.json.

    Raises:
        Failed: A kernel's answer is wrong or it did not run, or nothing was measured.
    """
    if not report.is_file():
        raise Failed("nothing was measured")
    found = json.loads(report.read_text(encoding="utf-8"))
    rows = found["results"]
    wrong = [f"{row['op']}, {row['size']}, {row['dtype']}: {row['failed']}"
             for row in rows if "failed" in row]  # fmt: skip
    if wrong or not any("seconds" in row for row in rows):
        raise Failed(f"{len(wrong)} of {len(rows)} rows: {'; '.join(wrong[:5]) or 'none measured'}")
    slower = [f"{row['op']}, {row['size']}, {row['dtype']}" for row in rows
              if min(row.get("faster_than", {"": 1}).values(), default=1) < 1]  # fmt: skip
    return {"rows": len(rows), "slower_than_torch": slower, "report": found}


def run(check: Check, python: Path) -> bool:
    """All parts; whether all passed."""
    check.folder.mkdir(parents=True, exist_ok=True)
    for log in check.folder.glob("*.log"):
        log.unlink()
    if not check.part("install", lambda: install(check, python)):
        return False
    check.end = max(check.end, time.monotonic() + 60 * LEAST)  # downloads take what they take
    half = max(1, (os.cpu_count() or 2) // 2)
    # The CPU's demo beside what keeps the GPU busy; rates come after it.
    beside = check.start("demo-cpu", demo_command(check, python, "cpu"), half)
    check.part("tests", lambda: tests(check, python))

    def demo() -> dict[str, Any]:
        check.run("demo", demo_command(check, python, "cuda"), 150)
        check.finish(beside, 240)
        return compare_demos(check, python)

    check.part("demo", demo)
    if beside.poll() is None:
        beside.kill()
        beside.wait()
    check.part("request", lambda: request(check, python))
    check.part("rates", lambda: rates(check, python))
    return all(part["passed"] for part in check.record["parts"].values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/gpu-check.json"))
    parser.add_argument("--python", type=Path, default=ROOT / ".venv" / "bin" / "python")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    named = Path(shutil.which(args.python) or args.python)
    python = Path(sys.executable) if args.rehearse else named.absolute()
    # What is built in place, or installed elsewhere without the project, is found by this.
    path = (str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    check = Check(args.out.absolute(), args.rehearse, time.monotonic() + 60 * args.minutes)
    command = f"python benchmarks/gpu_check.py{' --rehearse' * args.rehearse}"
    check.record = {"command": command, "rehearsed": args.rehearse}
    passed = run(check, python)
    print(f"{'All parts passed' if passed else 'Some parts failed'}. Send back {args.out}")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
