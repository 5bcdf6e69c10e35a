"""Runs the rows of OP_CASES on the emulated kernels, and prints what was found as JSON.

Two ways of being right: each result agrees with the float64 reference as the CPU's must, and it is
the same to the last bit under every schedule.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator

import torch
from emulation import load, poisoned, report, schedule, source_lines

from fudlr_ext.testing import OP_CASES, OpCase, Shape, as_tuple, check_agreement

# Where the kernels for GPUs change: 128 threads of 4 or 8 columns, chunks of 512 positions, parts
# of 256, tiles of 8, 16 or 64 rows, 128 columns and 32 positions on tensor cores.
GPU_SHAPES = (
    Shape((513, 3, 1024), 3, 9, 2),
    Shape((40, 1), 8, 516, 9),
    Shape((33, 64, 31), 16, 130, 2),
    Shape((5,), 17, 1030, 1),
    Shape((34, 7), 72, 136, 3),
    Shape((2, 30), 100, 72, 10),
)


def dtypes_of(case: OpCase) -> tuple[torch.dtype, ...]:
    """What the kernels take: what the CPU's do, and float16."""
    return (*case.dtypes, torch.float16) if case.packed else case.dtypes


def every_case(subset: int = 1) -> Iterator[tuple[OpCase, object, torch.dtype]]:
    """Every case, shape and dtype; or of each case's the last, and each `subset`-th before it.

    Of the ops that have a kernel for GPUs; docs/cuda.md lists those that have none yet.
    """
    for case in OP_CASES:
        if not has_kernel(case.name, "fudlr_emulated", "CPU"):
            continue
        shapes = (*case.shapes, *(GPU_SHAPES if case.packed else ()))
        rows = [(case, shape, dtype) for shape in shapes for dtype in dtypes_of(case)]
        yield from rows[::-1][::subset]


def has_kernel(op: str, library: str, device: str) -> bool:
    """Ask the dispatcher."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{library}::{op}", device)


def emulated(case: OpCase):
    """The op of a case, on the emulated kernels."""
    return getattr(torch.ops.fudlr_emulated, case.name).default


def complaint(case: OpCase, shape: object, dtype: torch.dtype, schedules, library) -> str | None:
    """What is wrong with a case under these schedules, or None."""
    arguments = case.make(shape, dtype)
    first = None
    for order, seed in schedules:
        with schedule(library, order, seed), poisoned():
            try:
                got = emulated(case)(*arguments)
                if first is None:
                    check_agreement(got, case, arguments)
                    first = as_tuple(got)
                elif not all(map(torch.equal, as_tuple(got), first)):
                    raise AssertionError("another schedule gives other bits")
            except (AssertionError, RuntimeError, ValueError) as error:
                return f"{case} {shape} {dtype} {order} {seed}: {error}"
    return None


def main() -> int:
    """Run, print, and return whether nothing was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", choices=("plain", "check", "sanitize"))
    parser.add_argument("--subset", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    schedules = [("forward", 0), ("reverse", 0)]
    schedules += [("random", seed) for seed in range(options.seeds)]
    if options.variant == "check":
        schedules = schedules[:1]  # what it looks for needs no unlucky schedule
    library = load(f"emulated_{options.variant}")
    library.emulator_reset()
    start, cases, complaints = time.perf_counter(), 0, []
    for case, shape, dtype in every_case(options.subset):
        cases += 1
        found = complaint(case, shape, dtype, schedules, library)
        if found:
            complaints.append(found)
    result = {
        "variant": options.variant,
        "cases": cases,
        "schedules": len(schedules),
        "disagreements": len(complaints),
        "examples": complaints[:10],
        "threads": library.emulator_threads(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    seen = report(library)
    if seen is not None:
        races = seen["races"]
        codes = [race[end] for race in races[:10] for end in ("code", "other")]
        result["races"] = len(races)
        result["race_lines"] = source_lines(f"emulated_{options.variant}", codes)
    print(json.dumps(result, indent=1))
    return 1 if complaints or result.get("races") else 0


if __name__ == "__main__":
    sys.exit(main())
