"""A training of up to 10^8 samples, recorded, asked and unrolled by four ranks of one thread.

    python benchmarks/rows.py [--rows 1e6 1e7 1e8] [--ranks 4]

Rows are made up, of 8 numbers; all else is the product's own: each rank records its samples of
every step into its part (int8), the first one makes them one store, `influence.large.remove`
answers a request from it (solve, threshold, update), and `Unrolled` gives each sample's influence
through the training and repeats it without the removed ones. Of each number of rows the seconds of
a phase, all ranks' CPU time, which load disturbs less, and the most memory of a rank; at the first
one, what one process removes from the same store. A rank holds no number a sample but one bit, the
mask of the unrolled update. glibc gives blocks of a MiB and more back when they are freed
(MALLOC_MMAP_THRESHOLD_), of which it else keeps the more, the more were used. Takes 5 GB of disk
for 10^8 rows. Writes benchmarks/results/rows.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, bar, write_result
from fudlr.common import parallel
from fudlr.common.digest import digest
from fudlr.config import RecordConfig
from fudlr.gradients import Projection
from fudlr.gradients.store import Binding, Recipe, Store
from fudlr.gradients.store.spools import RankRecorder
from fudlr.influence.large import remove
from fudlr.influence.unroll import Unrolled

CONTEXT = multiprocessing.get_context("spawn")
SHAPES = {"m.lora_A.w": (1, 4), "m.lora_B.w": (4, 1)}
D = 8
BATCH, RATE, DAMPING, BUDGET = 2**16, 1e-3, 0.1, 0.05
FLAT, LINEAR = 1.1, 1.15
PHASES = ("record", "seal", "request", "influence", "unroll")


def samples(step: int, count: int) -> torch.Tensor:
    """Gradients `[count, D]` of some samples of a step, with a part in common."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(count, D, generator=generator) + torch.linspace(-0.3, 0.4, D)


def start() -> torch.Tensor:
    """The adapter before the training."""
    return torch.randn(D, generator=torch.Generator().manual_seed(0))


def record(folder: Path, n: int) -> tuple[RankRecorder, dict[str, torch.Tensor]]:
    """Train, with this rank's samples of every step in its part; and both ends of the training."""
    here, theta = parallel.ranks(), start().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=RATE)
    whole = Projection(SHAPES, {name: torch.eye(4) for name in SHAPES})
    config = RecordConfig(dtype="int8", epochs="all")
    recorder = RankRecorder(folder, "rows", SHAPES, config, whole, ranks=here)
    recorder.begin_epoch(1)
    for step, first in enumerate(range(0, n, BATCH)):
        size = min(BATCH, n - first)
        own = here.part(size)
        rows = samples(step * here.size + here.rank, own.stop - own.start)
        theta.grad = rows.sum(0) / size
        here.sum(theta.grad)
        ids = torch.arange(first + own.start, first + own.stop)
        recorder.add(ids, rows, theta.grad, torch.full((len(ids),), 1 / size), RATE)
        optimiser.step()
    return recorder, {"start": start(), "end": theta.detach()}


def seal(recorder: RankRecorder, ends: dict[str, torch.Tensor], n: int) -> None:
    """Make the ranks' parts one store."""
    binding = Binding(*(digest(name) for name in ("model", "adapter", "data", str(n))))
    recorder.finish(binding, Recipe(), ends)
    recorder.close()


def asked(folder: Path) -> tuple[Any, torch.Tensor]:
    """A request, and its mask in bits."""
    store = Store.open(folder)
    fairness = torch.linspace(1, -1, D)
    found = remove(store, store.training()["end"], fairness, damping=DAMPING, budget=BUDGET)
    bits = torch.zeros(-(-store.n // 8), dtype=torch.uint8)
    for ids in found.removed():
        bits.index_add_(0, ids >> 3, (1 << (ids & 7)).to(torch.uint8))
    parallel.ranks().sum(bits)
    return found, bits


def peak(reset: bool = False) -> float:
    """The most MiB that this process took since it was last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
        return 0.0
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 2**10


def work(about: dict[str, str], folder: Path, n: int, out: Any) -> None:
    """One rank: all phases, or alone the request from a store that is there."""
    os.environ |= {"FUDLR_QUIET": "1", **about}
    torch.set_num_threads(1)
    parallel.start()
    here = parallel.ranks()
    found: dict[str, tuple[float, float, float]] = {}

    def timed(name: str, call: Any, *given: Any) -> Any:
        here.agree()
        peak(reset=True)
        begin, used = time.perf_counter(), time.process_time()
        value = call(*given)
        here.agree()
        found[name] = (time.perf_counter() - begin, peak(), time.process_time() - used)
        return value

    if here.size > 1:
        recorder, ends = timed("record", record, folder, n)
        timed("seal", seal, recorder, ends, n)
    removal, bits = timed("request", asked, folder)
    if here.size > 1:
        store = Store.open(folder)
        unrolled = Unrolled.of(store, SHAPES)

        def influence() -> torch.Tensor:
            total = torch.zeros(2, dtype=torch.float64)
            for _, products in unrolled.influences(torch.linspace(1, -1, D)[None]):
                total += torch.stack([products.double().sum(), products.double().square().sum()])
            here.sum(total)
            return total

        timed("influence", influence)

        def of(ids: torch.Tensor) -> torch.Tensor:
            return ((bits[ids >> 3] >> (ids & 7)) & 1)[None]

        theta = timed("unroll", unrolled.update, of)
        assert bool(theta.isfinite().all())
        assert not torch.equal(theta[0], store.training()["end"])
    said = {"removed": removal.threshold.removed, "mask": digest(bits),
            "theta": removal.update.theta.tolist()}  # fmt: skip
    out.send((found, said))
    parallel.end()


def together(size: int, folder: Path, n: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Seconds and most MiB of every phase, and what was removed."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port.getsockname()[1])}
    ends, processes = [], []
    for rank in range(size):
        here, there = CONTEXT.Pipe()
        about = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), **where}
        given = (about if size > 1 else {}, folder, n, there)
        processes.append(CONTEXT.Process(target=work, args=given))
        processes[-1].start()
        ends.append(here)
        there.close()
    found = [end.recv() for end in ends]
    for process in processes:
        process.join()
    phases = {
        name: {"seconds": max(each[0][name][0] for each in found),
               "mib": max(each[0][name][1] for each in found),
               "cpu_s": sum(each[0][name][2] for each in found)}
        for name in found[0][0]
    }  # fmt: skip
    assert all(said == found[0][1] for _, said in found)
    return phases, found[0][1]


def main() -> None:
    """Each number of rows, the first one by one process too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, nargs="+", default=[1e6, 1e7, 1e8])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--out", default="rows")
    args = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    sizes, rows, alone = [int(n) for n in args.rows], {}, {}
    for n in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "store"
            phases, said = together(args.ranks, folder, n)
            stored = sum(path.stat().st_size for path in folder.iterdir())
            rows[str(n)] = {"phases": phases, "store_bytes": stored, **said}
            if n == sizes[0]:
                alone, one = together(1, folder, n)
                assert one["mask"] == said["mask"]
            shutil.rmtree(folder)
        for phase, each in phases.items():
            figures = f"{each['seconds']:8.2f} s {each['cpu_s']:8.2f} s CPU {each['mib']:7.0f} MiB"
            print(f"{n:11,} {phase:10} {figures}", flush=True)
    if len(sizes) > 1:
        *_, less, most = (rows[str(n)]["phases"] for n in sizes)
        times = sizes[-1] / sizes[-2]
        memory = max(most[phase]["mib"] / less[phase]["mib"] for phase in PHASES)
        slower = most["request"]["cpu_s"] / less["request"]["cpu_s"] / times
        bars = [
            bar("memory of a rank beside a tenth of the rows", memory, FLAT, least=False),
            bar("CPU time of a request beside linear", slower, LINEAR, least=False),
        ]
        about = {"ranks": args.ranks, "p": D, "rows": rows, "alone": alone, "bars": bars}
        command = f"python benchmarks/rows.py --ranks {args.ranks}"
        write_result(RESULTS / f"{args.out}.json", command, **about)


if __name__ == "__main__":
    main()
