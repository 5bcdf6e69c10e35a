"""The GPU kernels at sizes of Llama's 1B and 7B models, beside plain PyTorch and the limits.

    FUDLR_CUDA=ON pip install --no-build-isolation -e ".[test]" && python benchmarks/gpu.py
    python benchmarks/gpu.py --only rows     # these families alone

Writes results/gpu.json, row after row (gpu_cases.py has them). Answers are compared before anything
is timed, and of a wrong one nothing is; times are medians of interleaved repeats, with the caches
overwritten before each. Rates count the bytes and operations that must be moved and done, and stand
beside a measured copy and a measured matrix product. After --minutes no further row is begun.
Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, describe
from fudlr.common.files import write_json
from gpu_cases import FAMILIES, HALVES, Row, Way, Ways, normal
from torch import Tensor

from fudlr_ext import _C

SIDE = 8_192


class WrongAnswer(Exception):
    """Ours is not what it should be; nothing is timed."""


def difference(got: Any, truth: Any) -> float:
    """The largest, over the results, of |got − truth| / |truth|; a None is not compared."""
    worst = 0.0
    pairs = [(x,) if isinstance(x, Tensor) else tuple(x) for x in (got, truth)]
    for x, y in zip(*pairs, strict=True):
        if x is not None and y is not None:
            gap, size = (float(z.double().norm()) for z in (x.double() - y.double(), y))
            error = gap / size if size else float(gap > 0)
            worst = error if not error <= worst else worst
    return worst


def checked(row: Row, ways: Ways) -> tuple[dict[str, float], Ways]:
    """Every way's difference from the truth, and those that can be timed."""
    truth = ways.get("truth", ways["plain"])()
    found = {name: difference(way(), truth) for name, way in ways.items() if name != "truth"}
    if not found["ours"] <= row.tolerance:
        raise WrongAnswer(f"off by {found['ours']:.1e}, more than {row.tolerance:.0e}")
    rival = 3e-2 if row.dtype in HALVES else 5e-3  # a way may round as it goes
    return found, {name: ways[name] for name, error in found.items() if error <= rival}


def timer(cache: Tensor | None) -> Any:
    """Seconds of a call; on a GPU between events, after its caches were overwritten."""

    def on_cpu(way: Way) -> float:
        start = time.perf_counter()
        way()
        return time.perf_counter() - start

    def on_gpu(way: Way) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()  # type: ignore[union-attr]
        begin.record()
        way()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    return on_cpu if cache is None else on_gpu


def medians(timed: Ways, clock: Any) -> dict[str, float]:
    """Medians of the ways' times, in turn, after two rounds that warm up."""
    warm = [sum(clock(way) for way in timed.values()) for _ in range(2)]
    repeats = max(3, min(15, int(1.0 / max(warm[-1], 1e-9))))
    times = [[clock(way) for way in timed.values()] for _ in range(repeats)]
    found = zip(timed, map(statistics.median, zip(*times, strict=True)), strict=True)
    return dict(found)


def limits(device: str, clock: Any, side: int) -> dict[str, float]:
    """Bytes a second of a copy, and operations a second of a matrix product in each dtype."""
    source = torch.ones(4 * side * side, device=device)
    target = torch.empty_like(source)
    copy = medians({"copy": lambda: target.copy_(source)}, clock)["copy"]
    found = {"bytes_per_second": 2 * source.nbytes / copy}
    for dtype in (torch.float32, *HALVES):
        a = normal(device)(side, side).to(dtype)
        seconds = medians({"": partial(torch.mm, a, a)}, clock)[""]
        found[f"operations_per_second_{dtype}"] = 2 * side**3 / seconds
    return found


def measure(row: Row, device: str, found: dict[str, float], clock: Any) -> dict[str, Any]:
    """A row of the result, as plain data."""
    names = ("family", "op", "size", "bytes", "operations")
    facts = {name: getattr(row, name) for name in names}
    facts["dtype"] = str(row.dtype).removeprefix("torch.")
    try:
        errors, timed = checked(row, row.build(device))
        seconds = medians(timed, clock)
    except (torch.OutOfMemoryError, MemoryError):
        return facts | {"not_measured": "out of memory"}
    except (WrongAnswer, RuntimeError, ValueError) as error:
        return facts | {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    ours = seconds["ours"]
    product = row.dtype if row.dtype in HALVES else torch.float32
    rate = found[f"operations_per_second_{product}"]
    return facts | {
        "seconds": seconds,
        "relative_difference": errors,
        "share_of_copy": row.bytes / ours / found["bytes_per_second"],
        "share_of_product": row.operations / ours / rate,
        "faster_than": {name: s / ours for name, s in seconds.items() if name != "ours"},
    }


def run(device: str, families: list[str], minutes: float, small: bool, out: Path | None) -> int:
    """Measure and write; the exit code."""
    end = time.monotonic() + 60 * minutes
    cache = None
    if device != "cpu":
        cache = torch.empty(1 << 28, dtype=torch.int8, device=device)
    clock = timer(cache)
    found = limits(device, clock, 64 if small else SIDE)
    gpu = None if device == "cpu" else torch.cuda.get_device_properties(0).name
    record: dict[str, Any] = {
        "command": f"python benchmarks/gpu.py --only {' '.join(families)}",
        "machine": describe(), "gpu": gpu, "limits": found, "results": [],
    }  # fmt: skip
    for row in (row for family in families for row in FAMILIES[family](small)):
        if time.monotonic() > end:
            print("no time was left")
            break
        record["results"].append(measure(row, device, found, clock))
        if out:
            write_json(out, record)
        line = record["results"][-1]
        said = line.get("failed") or line.get("not_measured") or line["faster_than"]
        print(f"{row}: {said}", flush=True)
    return int(any("failed" in row for row in record["results"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--small", action="store_true", help="only to see that it works")
    parser.add_argument("--out", type=Path, help="the result file (results/gpu.json)")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.small:
        print("gpu: no CUDA device is at hand, so nothing was measured")
        return
    if device == "cuda" and "cuda" not in _C.devices():
        sys.exit("gpu: the library has no GPU kernels. Build it with FUDLR_CUDA=ON")
    torch.backends.cuda.matmul.allow_tf32 = False
    out = args.out or (None if args.small else RESULTS / "gpu.json")
    sys.exit(run(device, args.only, args.minutes, args.small, out))


if __name__ == "__main__":
    main()
