"""Runs the cases on the emulated kernels, and prints what was found as JSON.

Two ways of being right: each result agrees with the float64 reference as the CPU's must, and it is
the same to the last bit under every schedule.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter

import torch
from cases import Job, every_job, without_kernel
from emulation import load, poisoned, report, schedule, source_lines


def same(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether all numbers are the same, NaN among them."""
    return torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num())


def complaint(job: Job, schedules, library) -> str | None:
    """What is wrong with a job under these schedules, or None."""
    first = None
    for order, seed in schedules:
        with schedule(library, order, seed), poisoned():
            try:
                got = job.run()
                if first is None:
                    job.check(got)
                    first = got
                elif not all(map(same, got, first)):
                    raise AssertionError("another schedule gives other bits")
            except (AssertionError, RuntimeError, ValueError) as error:
                return f"{job.label} {order} {seed}: {error}"
    return None


def main() -> int:
    """Run, print, and return whether nothing was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", choices=("plain", "check", "sanitize"))
    parser.add_argument("--some", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=())
    options = parser.parse_args()
    torch.set_num_threads(1)
    schedules = [("forward", 0), ("reverse", 0)]
    schedules += [("random", seed) for seed in range(options.seeds)]
    if options.variant == "check":
        schedules = schedules[:1]  # what it looks for needs no unlucky schedule
    library = load(f"emulated_{options.variant}")
    library.emulator_reset()
    start, cases, complaints = time.perf_counter(), Counter(), []
    for job in every_job("emulated", some=options.some, only=tuple(options.only)):
        cases[job.op] += 1
        found = complaint(job, schedules, library)
        if found:
            complaints.append(found)
    result = {
        "variant": options.variant,
        "cases": cases.total(),
        "cases_of": dict(sorted(cases.items())),
        "without_kernel": without_kernel("emulated"),
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
