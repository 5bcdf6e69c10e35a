"""An unrolled request from a store larger than the memory it may use: speed and peak memory.

    python benchmarks/store_stream.py        # 10⁶ rows × 2,000 × 3 epochs in int8: 7 GB of disk
    python benchmarks/store_stream.py --rows 100000 --out /dev/stdout

Writes a synthetic training to a temporary folder, deleted afterwards: random rows and mean
gradients, and the adapter to which Adam takes these. The request checks that, scores every sample
on two metrics and updates the adapter without a tenth of them; it runs in a process of its own, so
that its peak memory is its own. Before each of its passes the store is dropped from the page cache,
and read once by `read`, dropped again: that is the bandwidth, which a virtual machine's host may
lend from its own cache. Writes benchmarks/results/store_stream.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, bar, write_result
from fudlr.gradients import Projection
from fudlr.gradients.store import Binding, Recipe, Store, StoreWriter, digest
from fudlr.influence.unroll import Unrolled
from fudlr.influence.unroll.adam import OptimiserStep, State

BINDING = Binding(*(digest(name) for name in ("model", "adapter", "data", "order")))
LAYERS, RANK, WIDTH = 5, 8, 256
SHAPES = {
    f"{layer}.lora_{side}.weight": (RANK, WIDTH) if side == "A" else (WIDTH, RANK)
    for layer in range(LAYERS)
    for side in "AB"
}
D = 2 * LAYERS * RANK * WIDTH
RATE = 1e-4


def write(folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Record a training, in batches; every epoch in another order."""
    draw = torch.Generator().manual_seed(0)
    rows = 0.01 * torch.randn(given.batch, given.dim, generator=draw)
    turn = torch.linalg.qr(torch.randn(WIDTH, given.dim // (2 * LAYERS * RANK), generator=draw))[0]
    projection = Projection(SHAPES, {name: turn.T.clone() for name in SHAPES})
    start = 0.1 * torch.randn(D, generator=draw)
    recipe, state, t = Recipe(), State.at(start), 0
    began = time.perf_counter()
    with StoreWriter(folder, "synthetic", D, given.dtype) as store:
        store.use(projection)
        for epoch in range(1, given.epochs + 1):
            for ids in torch.randperm(given.rows, generator=draw).split(given.batch):
                # A roll makes each batch another one at no cost.
                moved = rows.roll(t, dims=1)[: len(ids)]
                mean = 1e-3 * torch.randn(D, generator=draw)
                store.append(ids, moved, mean, rate=RATE, epoch=epoch)
                t += 1
                state = OptimiserStep(recipe, t, RATE, start).move(state, mean)
        store.finish(BINDING, recipe, {"start": start, "end": state.theta})
    seconds = time.perf_counter() - began
    size = Store.open(folder).bytes
    return {"seconds": seconds, "store_gb": size / 1e9, "steps": t}


def request(folder: Path) -> dict[str, Any]:
    """Open, check, score and update, each from the disk, beside reading the same files."""
    idle, passes = peak(), {}

    def timed(name: str, work: Callable[[], Any], gigabytes: float) -> Any:
        read = from_disk(store, lambda: read_files(store))[0]
        seconds, found = from_disk(store, work)
        passes[name] = {
            "seconds": seconds,
            "gb_per_s": gigabytes / seconds,
            "read_gb_per_s": size / read,
            "share": gigabytes / seconds / (size / read),
        }
        return found

    began = time.perf_counter()
    store = Store.open(folder, BINDING)
    opened, size = time.perf_counter() - began, store.bytes / 1e9
    means = 4 * D * store.steps / 1e9
    unrolled = timed("check", lambda: Unrolled.of(store, SHAPES), size)
    vectors = torch.randn(2, D, generator=torch.Generator().manual_seed(1))
    scores = timed("scores", lambda: unrolled.influence(vectors), size + means)
    mask = (scores[:, 0] <= scores[:, 0].kthvalue(unrolled.n // 10).values).float()
    theta = timed("update", lambda: unrolled.update(mask), size)
    assert bool(torch.cat([scores.flatten(), theta]).isfinite().all())
    return {
        "open_seconds": opened,
        "passes": passes,
        "share_of_read_bandwidth": statistics.harmonic_mean([p["share"] for p in passes.values()]),
        "peak_gb": peak() / 1e9,
        "peak_gb_above_idle": (peak() - idle) / 1e9,
    }


def from_disk(store: Store, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a pass over a store that is dropped from the system's page cache."""
    for shard in store.shards:
        with shard.path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def read_files(store: Store) -> None:
    """Read all shards, as `cat` would."""
    buffer = bytearray(2**22)
    for shard in store.shards:
        with shard.path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def peak() -> int:
    """Largest resident memory of this process so far, bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def alone(task: Callable[..., Any], *args: Any) -> Any:
    """Run in a fresh process with this one's number of threads."""
    threads = (torch.get_num_threads(),)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, torch.set_num_threads, threads) as pool:
        return pool.apply(task, args)


def main() -> None:
    """Write, ask, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "store_stream.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        written = alone(write, Path(name) / "store", given)
        found = alone(request, Path(name) / "store")
    names = ("rows", "dim", "epochs", "batch", "dtype", "threads")
    options = " ".join(f"--{name} {getattr(given, name)}" for name in names)
    bars = [
        bar("peak memory, GB", found["peak_gb"], 4.0, least=False),
        bar("share of the read bandwidth", found["share_of_read_bandwidth"], 0.6),
    ]
    command = f"python benchmarks/store_stream.py {options}"
    write_result(given.out, command, parameters=D, write=written, request=found, bars=bars)


if __name__ == "__main__":
    main()
