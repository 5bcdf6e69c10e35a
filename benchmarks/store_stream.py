"""A request's product on a store larger than the memory it may use: speed and peak memory.

    python benchmarks/store_stream.py                  # 10⁶ rows × 2,000 in bfloat16: 4 GB of disk
    python benchmarks/store_stream.py --rows 100000 --out /dev/stdout

Writes a synthetic store to a temporary folder, deleted afterwards. Each measurement runs in a
process of its own, so that its peak memory is its own. Bandwidth is measured in the same run, with
the same threads: reading a 1 GiB array in memory, reading the store's files from the page cache
through mappings, and reading them by `read`, from the page cache and, dropped from it, from the
disk, which a virtual machine's host may cache: this one turn by turn with the product. The result
goes to benchmarks/results/store_stream.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import describe
from fudlr.gradients.store import Binding, Store, StoredRows, StoreWriter, digest

BINDING = Binding(*(digest(name) for name in ("model", "adapter", "data", "order")))
BLOCK = 10_000


def write(folder: Path, rows: int, dim: int, dtype: str) -> dict[str, float]:
    """Record rows as a training run would, in blocks."""
    base = torch.randn(BLOCK, dim, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    with StoreWriter(folder, "synthetic", 0, dtype, shard_bytes=2**26) as store:
        store.use_plain(dim)
        for first in range(0, rows, BLOCK):
            ids = torch.arange(first, min(first + BLOCK, rows))
            # A roll makes each block another one at no cost.
            store.append(ids, base.roll(first // BLOCK, dims=1)[: len(ids)])
        store.finish(BINDING)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "gb_per_s": Store.open(folder).bytes / seconds / 1e9}


def best(work: Callable[[], object], repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def bandwidth(folder: Path, repeats: int) -> dict[str, float]:
    """GB/s of reading from memory, medians."""
    array = torch.ones(2**28)
    memory = array.numel() * 4 / statistics.median(best(array.sum, repeats)) / 1e9
    store = Store.open(folder)
    return {
        "memory_gb_per_s": memory,
        "read_gb_per_s": store.bytes
        / statistics.median(best(lambda: read_files(store), repeats))
        / 1e9,
    }


def read_files(store: Store) -> None:
    """Read all shards, as `cat` would."""
    buffer = bytearray(2**22)
    for shard in store.shards:
        with shard.path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def request(folder: Path, vectors: int, repeats: int) -> dict[str, Any]:
    """Products as a request needs them, and the process's peak memory."""
    idle = peak()
    start = time.perf_counter()
    store = Store.open(folder, BINDING)
    opened = time.perf_counter() - start
    rows = StoredRows(store)
    v = torch.randn(vectors, rows.d, generator=torch.Generator().manual_seed(1))
    first = best(lambda: rows.gram_product(v), 1)[0]
    later = best(lambda: rows.gram_product(v), repeats)
    dots = statistics.median(best(lambda: rows.dots(v), repeats))
    sums = statistics.median(best(lambda: rows.sum(torch.ones(1, rows.n)), repeats))
    cold: dict[str, list[float]] = {"read": [], "gram": []}
    for _ in range(repeats):  # turn by turn: a disk that others use changes from second to second
        for name, work in (
            ("read", lambda: read_files(store)),
            ("gram", lambda: rows.gram_product(v)),
        ):
            forget(store)
            cold[name] += best(work, 1)
    return {
        "open_seconds": opened,
        "first_gram_seconds_with_checksums": first,
        "gram_seconds": later,
        "gram_gb_per_s": store.bytes / statistics.median(later) / 1e9,
        "dots_gb_per_s": store.bytes / dots / 1e9,
        "sum_gb_per_s": store.bytes / sums / 1e9,
        "disk_read_seconds": cold["read"],
        "gram_from_disk_seconds": cold["gram"],
        "disk_gb_per_s": store.bytes / statistics.median(cold["read"]) / 1e9,
        "gram_from_disk_gb_per_s": store.bytes / statistics.median(cold["gram"]) / 1e9,
        "peak_gb": peak() / 1e9,
        "peak_gb_above_idle": (peak() - idle) / 1e9,
    }


def forget(store: Store) -> None:
    """Drop the store's files from the system's page cache."""
    for shard in store.shards:
        with shard.path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak() -> int:
    """Largest resident memory of this process so far, bytes; mapped files included."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def alone(task: Callable[..., Any], *args: Any) -> Any:
    """Run in a fresh process with this one's number of threads."""
    threads = (torch.get_num_threads(),)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, torch.set_num_threads, threads) as pool:
        return pool.apply(task, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=2000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--vectors", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    default = Path(__file__).parent / "results" / "store_stream.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = alone(write, folder, args.rows, args.dim, args.dtype)
        read = alone(bandwidth, folder, args.repeats)
        found = alone(request, folder, args.vectors, args.repeats)
        size = Store.open(folder).bytes
    result = {
        "command": f"python benchmarks/store_stream.py --rows {args.rows} --dim {args.dim} "
        f"--dtype {args.dtype} --vectors {args.vectors} --threads {args.threads}",
        "machine": {**describe(), "load_average": os.getloadavg()},
        "store_gb": size / 1e9,
        "write": written,
        "bandwidth": read,
        "request": found,
        "share_of_memory_bandwidth": found["gram_gb_per_s"] / read["memory_gb_per_s"],
        "share_of_disk_bandwidth": found["gram_from_disk_gb_per_s"] / found["disk_gb_per_s"],
        "share_of_read_bandwidth": found["gram_gb_per_s"] / read["read_gb_per_s"],
    }
    text = json.dumps(result, indent=2) + "\n"
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
