"""Two ranks of one thread each beside one process of one thread, turn by turn on the same work.

    python benchmarks/ranks.py [--repeats 3] [--hidden 256] [--small]

The demo's model at a hidden size of 256, trained for two short epochs and recorded. Both groups of
processes live side by side and work in turn: while one does a piece, the other waits at a pipe. A
piece's time is from the moment at which all ranks of its group begin to that at which all are done.
Measured are recording in a pass (`fudlr record`), scoring all samples against eight vectors without
a store, gradients of three metrics and the validation loss, an epoch's training with its recording,
and a request from the recorded training (`fudlr debias` without curve and held-out users); the CPU
time of the busiest rank beside the single process's, which load disturbs less; and the memory that
a piece took at most on top of what the process had before: for `rows`, whole gradients that are
held, it is what counts. Needs two idle cores. Writes benchmarks/results/ranks.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, bar, write_result
from fudlr import RunConfig, debias, load_run, train_run
from fudlr.cli.demo import SMALL
from fudlr.common import parallel
from fudlr.common.progress import StageClock
from fudlr.config import merge
from fudlr.gradients.recording import recording
from fudlr.pipeline.evidence import gather
from fudlr.pipeline.plan import prepare, with_options
from fudlr.record import record_run
from fudlr.train.adapter import train_adapter

CONTEXT = multiprocessing.get_context("spawn")
BARS = {"record": 1.8, "scoring": 1.8, "metric gradients": 1.8, "training, recorded": None,
        "request": 1.6, "rows": None}  # fmt: skip
HELD = 0.65
VECTORS = 8


def options(hidden: int) -> dict[str, Any]:
    """The demo's small training, at another width."""
    return {**SMALL, "model.hidden": hidden, "model.intermediate": 3 * hidden, "train.epochs": 2}


def pieces(folder: Path, samples: int) -> dict[str, Callable[[], object]]:
    """What is measured, on the run in `folder`, as one rank does it."""
    run = load_run(folder)
    some = run.split.train.take(torch.arange(min(samples, len(run.split.train))).numpy())
    part = replace(run, split=replace(run.split, train=some), folder=None, bound=None)
    config = with_options(run.config.debias, {"also": ("dp",), "objective": "arp + hellinger"})
    own = [Path(parallel.ranks().told(tempfile.mkdtemp()))]
    vectors = torch.randn(VECTORS, run.engine.d, generator=torch.Generator().manual_seed(0))

    def fresh() -> Path:
        if parallel.ranks().first:
            shutil.rmtree(own[0], ignore_errors=True)
            own[0].mkdir()
        parallel.ranks().agree()
        return own[0]

    def record() -> None:
        record_run(part, fresh() / "store")

    def score() -> None:
        run.engine.load(run.theta)
        plan = prepare(part, with_options(config, {"rows": "stream"}))
        gather(plan).space.rows.dots(vectors)

    def rows() -> None:
        run.engine.load(run.theta)
        gather(prepare(part, with_options(config, {"rows": "memory"})))

    def metrics() -> None:
        run.engine.load(run.theta)
        plan = prepare(run, with_options(config, {"lambda_acc": 1.0}))
        plan.gradients(plan.valid)

    def train() -> None:
        once = merge(run.config, {"train.epochs": 1})
        face, out = (run.recommender, run.engine, some), fresh()
        run.engine.load(run.start)
        with recording(*face, config=once, run=out, clock=StageClock(announce=False)) as recorder:
            train_adapter(*face, once.train, run.start, recorder=recorder)

    def request() -> None:
        debias(run, config, curve=(), heldout=False, force=True)

    return {"record": record, "scoring": score, "metric gradients": metrics,
            "training, recorded": train, "request": request, "rows": rows}  # fmt: skip


def work(about: dict[str, str], folder: Path, samples: int, orders: Any) -> None:
    """One rank: the pieces that it is told, until there are none."""
    os.environ |= {"FUDLR_QUIET": "1", **about}
    torch.set_num_threads(1)
    parallel.start()
    known = pieces(folder, samples)
    while (name := orders.recv()) is not None:
        parallel.ranks().agree()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
        before, begin, used = memory("VmRSS"), time.perf_counter(), time.process_time()
        known[name]()
        parallel.ranks().agree()
        took = memory("VmHWM") - before
        orders.send((time.perf_counter() - begin, time.process_time() - used, took))
    parallel.end()


def memory(name: str) -> float:
    """MiB of this process, by the kernel's name for them."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{name}:")[2].split()[0]) / 2**10


class Group:
    """Ranks that wait for orders."""

    def __init__(self, size: int, folder: Path, samples: int) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = str(found.getsockname()[1])
        self.ends, self.processes = [], []
        for rank in range(size):
            here, there = CONTEXT.Pipe()
            about = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank),
                     "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}  # fmt: skip
            given = (about if size > 1 else {}, folder, samples, there)
            self.processes.append(CONTEXT.Process(target=work, args=given))
            self.processes[-1].start()
            self.ends.append(here)

    def do(self, name: str | None) -> list[float]:
        """Do a piece; the most seconds, CPU seconds and MiB of a rank."""
        for end in self.ends:
            end.send(name)
        found = [end.recv() for end in self.ends] if name else [(0.0, 0.0, 0.0)]
        return [max(each) for each in zip(*found, strict=True)]


def main() -> None:
    """Train, measure turn by turn, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--samples", type=int, default=1024, help="of the pieces but the request")
    parser.add_argument("--small", action="store_true", help="a smoke test; nothing is written")
    args = parser.parse_args()
    if args.small:
        args.repeats, args.hidden, args.samples = 1, 64, 256
    os.environ["FUDLR_QUIET"] = "1"
    config = merge(RunConfig(), options(args.hidden))
    with tempfile.TemporaryDirectory() as name:
        run = train_run(config, Path(name) / "run")
        groups = {size: Group(size, Path(name) / "run", args.samples) for size in (1, 2)}
        times = {piece: {1: [], 2: []} for piece in BARS}
        used = {piece: {1: [], 2: []} for piece in BARS}
        peaks = {piece: {1: 0.0, 2: 0.0} for piece in BARS}
        for turn in range(args.repeats + 1):
            for piece, found in times.items():
                for size, group in groups.items():
                    seconds, cpu, took = group.do(piece)
                    peaks[piece][size] = max(took, peaks[piece][size])
                    if turn:  # the first round warms up
                        found[size].append(seconds)
                        used[piece][size].append(cpu)
        for group in groups.values():
            group.do(None)
            for process in group.processes:
                process.join()
    rows = {}
    for piece, found in times.items():
        one, two = (statistics.median(found[size]) for size in (1, 2))
        of_one, of_two = (statistics.median(used[piece][size]) for size in (1, 2))
        rows[piece] = {"one_s": one, "two_s": two, "times": one / two, "all": found}
        rows[piece] |= {"mib": peaks[piece]}
        rows[piece] |= {"one_cpu_s": of_one, "rank_cpu_s": of_two, "cpu_times": of_one / of_two}
        print(
            f"{piece:20} {one:7.2f} s  {two:7.2f} s  {one / two:.2f} times; CPU of the busiest "
            f"rank {of_one / of_two:.2f} times less",
            flush=True,
        )
    bars = [bar(name, rows[name]["times"], least) for name, least in BARS.items() if least]
    held = peaks["rows"][2] / peaks["rows"][1]
    bars.append(bar("memory of rows held", held, HELD, least=False))
    about = {"hidden": args.hidden, "parameters": run.engine.d, "samples": len(run.split.train)}
    about |= {"taken": args.samples, "pieces": rows, "bars": bars}
    if not args.small:
        command = f"python benchmarks/ranks.py --repeats {args.repeats} --hidden {args.hidden}"
        write_result(RESULTS / "ranks.json", command, **about)


if __name__ == "__main__":
    main()
