"""The GPU kernels on sizes of Llama's 1B and 7B models, against plain PyTorch and the limits.

    FUDLR_CUDA=ON pip install --no-build-isolation -e ".[test]" && python benchmarks/gpu.py
    python benchmarks/gpu.py --list             # the rows that would be measured; needs no GPU
    python benchmarks/gpu.py --only rows  # these families; other rows in the file stay

Writes results/gpu.json, row after row. The rows are those of gpu_cases/: every op, beside the same
in plain PyTorch and at its best otherwise. Answers are compared before anything is timed, and of
a wrong one nothing is; times are medians of interleaved repeats. Rates count the bytes and
operations that must be moved and done, by the formula beside each row, and stand beside a measured
copy and a measured matrix product. Without a GPU it says so and measures nothing.

After --minutes no further row is begun. A row that fails is noted, and the rest goes on; where it
took the device with it, in a process of its own from the next family on. --small shows on any
machine that the command works: all rows at sizes whose figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import describe
from fudlr.common.files import write_json
from gpu_cases import FAMILIES, cases
from gpu_cases.case import PLAIN, Case
from gpu_cases.measure import WrongAnswer, limits, make_clock, measure

from fudlr_ext import _C

RESULT = Path(__file__).resolve().parent / "results" / "gpu.json"
MINUTES = 8.0


def facts(family: str, case: Case) -> dict[str, Any]:
    """What a row says whatever is measured."""
    return {
        "family": family,
        "op": case.op,
        "size": case.size.name,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "bytes": case.work.bytes,
        "operations": case.work.operations,
        "formula": case.work.formula,
    }


def row_of(family: str, case: Case, device: str, found: dict, clock: Any) -> dict[str, Any]:
    """A row that was measured, or says under "failed" or "not_measured" why it was not."""
    row = facts(family, case)
    if device == "cpu" and case.cpu_refuses:
        return row | {"not_measured": case.cpu_refuses}
    try:
        return row | measure(case, device, found, clock)
    except torch.OutOfMemoryError:
        return row | {"not_measured": "out of memory"}
    except (WrongAnswer, RuntimeError, ValueError) as error:
        return row | {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}


def is_lost(device: str) -> bool:
    """Whether nothing can be run on the device any more, as after a wrong access by a kernel."""
    if device == "cpu":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def line_of(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    name = f"{row['op']:45} {row['size']:28} {row['dtype']:9}"
    for reason in ("failed", "not_measured"):
        if reason in row:
            return f"{name} {reason.replace('_', ' ')}: {row[reason]}"
    plain = row["faster_than"].get(PLAIN)
    return (
        f"{name} {row['seconds']['ours']['median'] * 1e3:9.3f} ms, "
        f"{row['share_of_copy']:5.0%} of copy, {row['share_of_product']:5.0%} of product, "
        + ("plain PyTorch left out" if plain is None else f"{plain:.2f}x plain PyTorch")
    )


def list_rows(families: list[str], small: bool) -> None:
    for family in families:
        for case in cases(family, small):
            work = case.work
            print(f"{family:10} {case}: {work.bytes / 1e6:.6g} MB, {work.operations / 1e9:.6g} G")
            print(f"{'':10} {work.formula}")


def kept_rows(path: Path, record: dict[str, Any], families: list[str]) -> list[dict[str, Any]]:
    """Rows of other families in the file, where the same code made them on the same GPU."""
    if len(families) == len(FAMILIES) or not path.is_file():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    if (before["gpu"], before["machine"]["commit"]) != (
        record["gpu"],
        record["machine"]["commit"],
    ):
        return []
    return [row for row in before["results"] if row["family"] not in families]


def run(args: argparse.Namespace, device: str) -> int:
    """Measure and write; the exit code."""
    end = time.monotonic() + 60 * args.minutes
    clock = make_clock(device)
    found = limits(device, clock, 64 if args.small else 8_192)
    gpu = None
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        gpu = {"name": properties.name, "bytes": properties.total_memory}
    record: dict[str, Any] = {
        "command": f"python benchmarks/gpu.py{' --small' if args.small else ''}",
        "machine": describe(),
        "gpu": gpu,
        "limits": found,
    }
    record["results"] = kept_rows(args.out, record, args.only) if args.out else []
    for place, family in enumerate(args.only):
        lost = False
        for case in cases(family, args.small):
            if lost or time.monotonic() > end:
                reason = "the device was lost" if lost else "no time was left"
                row = facts(family, case) | {"not_measured": reason}
            else:
                row = row_of(family, case, device, found, clock)
                lost = "failed" in row and is_lost(device)
            record["results"].append(row)
            if args.out:
                write_json(args.out, record)
            print(line_of(row), flush=True)
        if lost:
            return go_on(args, args.only[place + 1 :], end)
    return int(any("failed" in row for row in record["results"]))


def go_on(args: argparse.Namespace, families: list[str], end: float) -> int:
    """The families that are left, in a process in this one's place, which lets go of the device.

    What failed so far stays in the file, and with it the exit code 1.
    """
    print(f"gpu: the device is lost; left: {', '.join(families) or 'nothing'}", flush=True)
    if families:
        minutes = max(0.0, (end - time.monotonic()) / 60)
        options = ["--only", *families, "--minutes", str(minutes)]
        options += ["--small"] * args.small + (["--out", str(args.out)] if args.out else [])
        os.execv(sys.executable, [sys.executable, __file__, *options])
    return 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the rows and measure nothing")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--small", action="store_true", help="only to see that it works")
    parser.add_argument("--out", type=Path, help="where to; with --small nowhere if not said")
    args = parser.parse_args()
    if args.list:
        list_rows(args.only, args.small)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.small:
        print("gpu: no CUDA device is at hand, so nothing was measured")
        return
    if device == "cuda" and "cuda" not in _C.devices():
        sys.exit("gpu: the library has no GPU kernels. Build it with FUDLR_CUDA=ON")
    if args.out is None and not args.small:
        args.out = RESULT
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    sys.exit(run(args, device))


if __name__ == "__main__":
    main()
