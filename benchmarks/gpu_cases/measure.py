"""A case becomes a row: answers compared, then times, peak memory and shares of the limits."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpu_cases.case import OURS, PLAIN, TRUTH, Case, Way, normal

MOST, LEAST, SECONDS = 15, 3, 1.0
"""Repeats of a row, and the time that they may take together as long as there are the fewest."""

PRODUCTS = (torch.float32, torch.bfloat16, torch.float16)


class WrongAnswer(Exception):
    """Ours is not what it should be; nothing is timed."""


def make_clock(device: str) -> Callable[[Way], float]:
    """Seconds of a call; on a GPU between events, after its caches were overwritten.

    Overwriting keeps the GPU busy meanwhile, so that what is measured is its own time as far as
    launches keep ahead of it.
    """
    if device == "cpu":

        def on_cpu(way: Way) -> float:
            start = time.perf_counter()
            way()
            return time.perf_counter() - start

        return on_cpu
    cache = torch.empty(1 << 28, dtype=torch.int8, device=device)

    def on_gpu(way: Way) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        begin.record()
        way()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    return on_gpu


def seconds(timed: Mapping[str, Way], clock: Callable[[Way], float]) -> dict[str, dict]:
    """Medians of the ways' times, in turn, after two rounds that warm up."""
    warm = [sum(clock(way) for way in timed.values()) for _ in range(2)]
    repeats = max(LEAST, min(MOST, int(SECONDS / max(warm[-1], 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, way in timed.items():
            times[name].append(clock(way))
    return {
        name: {"median": statistics.median(t), "least": min(t), "most": max(t), "repeats": repeats}
        for name, t in times.items()
    }


def median(way: Way, clock: Callable[[Way], float]) -> float:
    return seconds({"": way}, clock)[""]["median"]


def copy_rate(device: str, clock: Callable[[Way], float], numbers: int) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median(lambda: target.copy_(source), clock)


def limits(device: str, clock: Callable[[Way], float], side: int = 8_192) -> dict[str, float]:
    """Bytes a second of a copy, and operations a second of a matrix product in each dtype."""
    found = {"bytes_per_second": copy_rate(device, clock, 4 * side * side)}
    for dtype in PRODUCTS:
        a = normal(device)(side, side).to(dtype)
        found[f"operations_per_second_{dtype}"] = (
            2 * side**3 / median(partial(torch.mm, a, a), clock)
        )
    return found


def as_tuple(result: Any) -> tuple[Tensor | None, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def difference(got: Any, truth: Any) -> float:
    """The largest, over the results, of |got − truth| / |truth|; NaN where numbers are none.

    What a way has not, None, is not compared.
    """
    pairs = zip(as_tuple(got), as_tuple(truth), strict=True)
    worst = [0.0]
    for x, y in pairs:
        if x is None or y is None:
            continue
        if x.shape != y.shape:
            return float("inf")
        dtype = torch.promote_types(torch.float32, torch.promote_types(x.dtype, y.dtype))
        norm = torch.linalg.vector_norm
        gap = float(norm(x.to(dtype) - y.to(dtype), dtype=torch.float64))
        size = float(norm(y.to(dtype), dtype=torch.float64))
        worst.append(gap / size if size else float(gap > 0))
    return float("nan") if any(map(math.isnan, worst)) else max(worst)


def differences(case: Case, compared: dict[str, Way]) -> tuple[dict[str, float], dict[str, str]]:
    """Every way's difference from the truth, and why some cannot be timed.

    Raises:
        WrongAnswer: Ours is off.
    """
    truth = compared[TRUTH if TRUTH in compared else PLAIN]()
    found, left_out = {}, {}
    for name in (name for name in compared if name != TRUTH):
        try:
            found[name] = difference(compared[name](), truth)
        except torch.OutOfMemoryError:
            if name == OURS:
                raise
            left_out[name] = "out of memory"
            continue
        allowed = case.tolerance if name == OURS else case.rival_tolerance
        if not found[name] <= allowed:
            said = f"off by {found[name]:.1e}, more than {allowed:.0e}"
            if name == OURS:
                raise WrongAnswer(said)
            left_out[name] = said
    return found, left_out


def peaks(timed: Mapping[str, Way], device: str) -> dict[str, int]:
    """Bytes that each way holds at most, its results included and its inputs not."""
    if device == "cpu":
        return {}
    found = {}
    for name, way in timed.items():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        found[name] = torch.cuda.max_memory_allocated() - before
    return found


def measure(
    case: Case, device: str, found: Mapping[str, float], clock: Callable[[Way], float]
) -> dict[str, Any]:
    """The row of a case, as plain data. found: What `limits` gave."""
    ways = case.build(device)
    errors, left_out = differences(case, ways.compared)
    timed = {name: way for name, way in ways.timed.items() if name not in left_out}
    with_peaks = peaks(timed, device)
    times = seconds(timed, clock)
    ours = times[OURS]["median"]
    product = case.dtype if case.dtype in PRODUCTS else torch.float32  # int8 is multiplied as such
    rate = found[f"operations_per_second_{product}"]
    return {
        "seconds": times,
        "relative_difference": errors,
        "left_out": left_out,
        "peak_bytes": with_peaks,
        "bytes_per_second": case.work.bytes / ours,
        "operations_per_second": case.work.operations / ours,
        "share_of_copy": case.work.bytes / ours / found["bytes_per_second"],
        "share_of_product": case.work.operations / ours / rate,
        "faster_than": {name: t["median"] / ours for name, t in times.items() if name != OURS},
    }
