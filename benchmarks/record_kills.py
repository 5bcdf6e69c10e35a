"""Kill recorded trainings with SIGKILL at random moments, resume, compare with undisturbed ones.

    python benchmarks/record_kills.py [--kills 50] [--seed 0]

All epochs of the demo's small training are recorded, with a checkpoint every few steps: by
`fudlr train` through the engine and through peft, which go on from the last checkpoint, and by a
loop with a `Recorder`, which starts again and passes what is stored unrecorded. Each process is a
fork of one that has imported everything, so that kills hit work and not imports. In every second
round fsync takes a tenth of a second more, as on a slow disk, so that many kills hit a file in the
making. Every store, and the adapter where there is one, is compared byte for byte with what an
undisturbed process leaves. Writes benchmarks/results/record_kills.json.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, bar, write_result
from fudlr import RunConfig, load_run, train_run
from fudlr.cli.demo import SMALL
from fudlr.config import merge
from fudlr.data import fetch_ml100k
from fudlr.gradients.store import Recorder, Store
from fudlr.run import folder as run_folder

OPTIONS = {**SMALL, "model.pretrain_epochs": 0, "train.epochs": 3, "train.batch": 64,
           "train.checkpoint": 4}  # fmt: skip
SLOW = 0.1  # seconds that a slow disk's fsync takes more
PER_ROUND = 10  # kills of one training

Work = Callable[[Path, Callable[[], None]], None]
"""Record into a folder, and call the function once loading is over."""


def training(through: str) -> Work:
    """`fudlr train`."""
    config = merge(RunConfig(), {**OPTIONS, "train.through": through})

    def work(folder: Path, loaded: Callable[[], None]) -> None:
        train = run_folder.train_adapter

        def told(*args: Any, **options: Any) -> Any:
            loaded()
            return train(*args, **options)

        run_folder.train_adapter = told
        train_run(config, folder / "run")

    return work


def loop(trained: Path) -> Work:
    """AdamW on the run in `trained` from its start, two batches a step."""

    def work(folder: Path, loaded: Callable[[], None]) -> None:
        run = load_run(trained)
        samples, face = run.split.train, run.recommender
        run.engine.load(run.start)
        parameters = [p.requires_grad_() for p in run.engine.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=1e-3)
        order = torch.Generator().manual_seed(0)
        loaded()
        options = {"data": "of this loop", "config": run.config.record, "optimiser": optimiser}
        with Recorder(run.engine, folder / "store", **options) as recorder:
            for _ in range(2):
                steps = torch.randperm(len(samples), generator=order).split(128)
                for count, index in enumerate(steps):
                    for part in index.chunk(2):
                        batch = face.collate(samples.take(part.numpy()))
                        with recorder.batch(part, divisor=len(index)):
                            losses = face.loss(face.forward(face.model, batch), batch)
                            (losses.sum() / len(index)).backward()
                    optimiser.step()
                    optimiser.zero_grad()
                    if count % 2:
                        recorder.flush()

    return work


def start(work: Work, folder: Path, slow: bool) -> tuple[int, int]:
    """Fork; process id, and the end of a pipe that is readable once loading is over."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    code = 1
    try:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        if slow:
            fsync = os.fsync
            os.fsync = lambda handle: (time.sleep(SLOW), fsync(handle))[1]
        work(folder, lambda: os.write(writing, b"."))
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def finish(work: Work, folder: Path, slow: bool) -> float:
    """Run to the end; seconds after loading."""
    child, reading = start(work, folder, slow)
    os.read(reading, 1)
    begin = time.monotonic()
    os.close(reading)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("a process that was not killed failed")
    return time.monotonic() - begin


def kill(work: Work, folder: Path, slow: bool, after: Callable[[], float]) -> bool:
    """Kill a process some seconds after loading; whether that came before its end."""
    child, reading = start(work, folder, slow)
    os.read(reading, 1)
    time.sleep(after())
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if status and not os.WIFSIGNALED(status):
        raise RuntimeError(f"a resumed process failed with status {status}")
    return os.WIFSIGNALED(status)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of the store, and of the adapter of a run."""
    found = [path for path in folder.rglob("*.*") if path.parent.name in ("store", "adapter")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found if p.name != ".lock"}


def half_written(folder: Path) -> set[Path]:
    """Files under a temporary name."""
    return {*folder.rglob(".rows-*"), *folder.rglob(".manifest.*")}


def round_of(kind: str, work: Work, kills: int, slow: bool, chance: random.Random) -> dict:
    """Up to `kills` kills of one training, each resumed, and the comparison."""
    with tempfile.TemporaryDirectory() as name:
        whole, disturbed = Path(name) / "whole", Path(name) / "disturbed"
        whole.mkdir(), disturbed.mkdir()
        span = finish(work, whole, slow)
        # A loop begins anew, a training goes on from its checkpoint.
        most = 0.9 * span if kind == "loop" else 2 * span / (kills + 1)
        hit, in_the_making = 0, 0
        while hit < kills:
            before = half_written(disturbed)
            if not kill(work, disturbed, slow, lambda: chance.uniform(0, most)):
                break
            hit += 1
            in_the_making += bool(half_written(disturbed) - before)
        if hit == kills:
            finish(work, disturbed, slow)
        stores = [
            Store.open(next(each.rglob("store")), check="full") for each in (whole, disturbed)
        ]
        left, right = contents(whole), contents(disturbed)
        return {
            "process": kind,
            "slow_disk": slow,
            "kills": hit,
            "kills_with_a_file_in_the_making": in_the_making,
            "seconds": span,
            "steps": stores[1].steps,
            "epochs": int(stores[1].epochs.max()),
            "files": len(right),
            "differing": [n for n in sorted({*left, *right}) if left.get(n) != right.get(n)],
            "leftovers": sorted(path.name for path in half_written(disturbed)),
        }


def main() -> None:
    """Kill, resume, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["FUDLR_QUIET"] = "1"
    fetch_ml100k()
    chance, rounds = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as name:
        trained = Path(name)
        finish(training("engine"), trained, slow=False)
        kinds = {each: training(each) for each in ("engine", "peft")}
        kinds["loop"] = loop(trained / "run")
        while sum(each["kills"] for each in rounds) < args.kills:
            kind = list(kinds)[len(rounds) % len(kinds)]
            kills = min(PER_ROUND, args.kills - sum(each["kills"] for each in rounds))
            slow = len(rounds) % 2 == 1
            rounds.append(round_of(kind, kinds[kind], kills, slow, chance))
            print(rounds[-1], flush=True)
    command = f"python benchmarks/record_kills.py --kills {args.kills} --seed {args.seed}"
    kills = sum(each["kills"] for each in rounds)
    equal = sum(not each["differing"] for each in rounds) / len(rounds)
    bars = [bar("share of the stores that equal an undisturbed one", equal, 1.0)]
    write_result(RESULTS / "record_kills.json", command, kills=kills, bars=bars, rounds=rounds)
    sys.exit(0 if equal == 1 else 1)


if __name__ == "__main__":
    main()
