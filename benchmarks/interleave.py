"""Several pieces of work timed in turn, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    work: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, dict[str, float | list[float]]]:
    """Run all pieces `repeats` times, one after the other, after a first round that is not timed.

    Returns:
        For each: medians `cpu_s` (of this process, all threads) and `wall_s`, and all of them,
        `cpu_all_s` and `wall_all_s`.
    """
    cpu: dict[str, list[float]] = {name: [] for name in work}
    wall: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(repeats + 1):
        for name, piece in work.items():
            start, used = time.perf_counter(), time.process_time()
            piece()
            if round_:
                cpu[name].append(time.process_time() - used)
                wall[name].append(time.perf_counter() - start)
    return {
        name: {
            "cpu_s": statistics.median(cpu[name]),
            "wall_s": statistics.median(wall[name]),
            "cpu_all_s": cpu[name],
            "wall_all_s": wall[name],
        }
        for name in work
    }
