"""Kill real recordings with SIGKILL at random moments, resume, compare with undisturbed ones.

    python benchmarks/record_kills.py [--kills 50] [--loop-kills 12] [--train-kills 6] [--seed 0]

The demo's small model and data (`--source synthetic` for a smaller one). Three kinds of processes:

- `fudlr record RUN` on a trained adapter; started again it goes on where it stopped.
- A loop of one's own with a `Recorder`, which flushes every second batch; started again from the
  same checkpoint it passes stored batches unrecorded.
- `fudlr train` with a recorder on its last epoch; a killed training left nothing at its place and
  starts over.

Each process is a fork of one that has imported everything, so that kills hit work and not imports;
shards are as small as they can be. In every second round fsync takes a tenth of a second more, as
on a slow disk, so that many kills hit a file in the making. What is left in the end is compared
byte for byte with what undisturbed processes leave. Writes benchmarks/results/record_kills.json.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from common import describe
from fudlr import RunConfig, load_run, record, train_run
from fudlr.cli import app
from fudlr.common.files import write_json
from fudlr.config import merge
from fudlr.demo import SMALL
from fudlr.gradients.recording import data_fingerprints
from fudlr.gradients.store import Recorder, Store
from fudlr.record import record_run, scoring
from fudlr.train.adapter import train_adapter

RESULT = Path(__file__).parent / "results" / "record_kills.json"
SLOW = 0.1  # seconds that a slow disk's fsync takes more
RECORD = {"train.batch": 64, "record.batch": 32, "record.fit_samples": 32, "record.audit": 8}
TINY = {"model.hidden": 32, "model.heads": 2, "model.kv_heads": 1, "model.intermediate": 24,
        "data.k": 5, "lora.rank": 2, "train.batch": 32, "record.dims": 4}  # fmt: skip


class Processes:
    """Forks that work in a folder and say through a pipe that loading is over."""

    def __init__(self, chance: random.Random, slow: bool) -> None:
        self.chance = chance
        self.slow = slow

    def start(self, work: Callable[[Callable[[], None]], None]) -> tuple[int, int]:
        """Process id, and the end of a pipe that is readable once `work` calls its argument."""
        reading, writing = os.pipe()
        child = os.fork()
        if child:
            os.close(writing)
            return child, reading
        code = 1
        try:
            os.close(reading)
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            if self.slow:
                fsync = os.fsync
                os.fsync = lambda handle: (time.sleep(SLOW), fsync(handle))[1]
            work(lambda: os.write(writing, b"."))
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def undisturbed(self, work: Callable[[Callable[[], None]], None]) -> float:
        """Run to the end; seconds after loading."""
        child, reading = self.start(work)
        os.read(reading, 1)
        begin = time.monotonic()
        os.close(reading)
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("an undisturbed process failed")
        return time.monotonic() - begin

    def killed(self, work: Callable[[Callable[[], None]], None], span: float) -> bool:
        """Run and kill at a random moment, within `span` seconds after loading, mostly.

        Whether the kill came before the end.
        """
        child, reading = self.start(work)
        if self.chance.random() < 0.1:
            time.sleep(self.chance.uniform(0, 1))  # while it loads
        else:
            os.read(reading, 1)
            time.sleep(self.chance.uniform(0, span))
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            return True
        if status:
            raise RuntimeError(f"a resumed process failed with status {status}")
        return False


def contents(folder: Path) -> dict[str, bytes]:
    """All files, but for locks and what a kill left under a temporary name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def unfinished(folder: Path) -> set[Path]:
    """Files and folders under a temporary name."""
    return {path for path in folder.rglob(".*") if not path.name.startswith(".writer")}


def stored(folder: Path) -> int:
    """Rows in the shards there; opening checks them all."""
    return Store.open(folder, check="full").n if any(folder.glob("rows-*")) else 0


def round_of(
    kind: str, make: Callable, *, slow: bool, kills: int, chance: random.Random, folder: Path
) -> dict:
    """Up to `kills` kills of one recording, each resumed, and the comparison."""
    processes = Processes(chance, slow)
    whole, disturbed = folder / "whole", folder / "disturbed"
    span = processes.undisturbed(make(whole))
    killed, in_the_making, rows = 0, 0, []
    places = [disturbed, disturbed.with_name("disturbed.recording")]
    while killed < kills:
        before = unfinished(folder)
        if not processes.killed(make(disturbed), 2 * span / (kills + 1)):
            break
        killed += 1
        in_the_making += bool(unfinished(folder) - before)
        rows.append(max(stored(place) for place in places))
    processes.undisturbed(make(disturbed))
    left, right = (Store.open(place, check="full") for place in (whole, disturbed))
    return {
        "process": kind,
        "slow_disk": slow,
        "kills": killed,
        "kills_with_a_file_in_the_making": in_the_making,
        "rows_stored_after_each_kill": rows,
        "rows": right.n,
        "content_equal": left.content_sha256() == right.content_sha256(),
        "files_equal": contents(whole) == contents(disturbed),
        "leftovers": sorted(path.name for path in unfinished(disturbed)),
    }


def recording(run: Path) -> Callable:
    """`fudlr record RUN --out FOLDER`."""

    def make(out: Path) -> Callable:
        def work(loaded: Callable[[], None]) -> None:
            def told(*args, **options):
                loaded()
                return record_run(*args, **options)

            scoring.SHARD_BYTES = 1
            record.record_run = told  # what the command imports when it is called
            app(["record", str(run), "--out", str(out), "--threads", "1"], standalone_mode=False)

        return work

    return make


def loop(folder: Path) -> Callable:
    """One epoch from the start that RUN has, recorded in one's own loop."""

    def make(out: Path) -> Callable:
        def work(loaded: Callable[[], None]) -> None:
            run = load_run(folder)
            config = run.config.train.model_copy(update={"epochs": 1})
            samples = run.split.train
            ids = torch.from_numpy(samples.ids)
            data = data_fingerprints(run.recommender, samples, run.config.data.window)
            run.engine.load(run.start)
            loaded()
            options = {"data": data, "config": run.config.record}
            with Recorder(run.engine, out, course="of this loop", **options) as recorder:

                def observer(epoch, index):
                    if index[0] % 2:
                        recorder.flush()
                    return recorder.batch(ids[index])

                train_adapter(
                    run.recommender, run.engine, samples, config, run.start, observer=observer
                )

        return work

    return make


def training(config: RunConfig) -> Callable:
    """`fudlr train`, its adapter and its store; a round compares both."""

    def make(out: Path) -> Callable:
        def work(loaded: Callable[[], None]) -> None:
            loaded()
            train_run(config, out.with_name(f"{out.name}-run"))
            out.mkdir(exist_ok=True)
            for part in ("store", "adapter"):
                shutil.copytree(out.with_name(f"{out.name}-run") / part, out, dirs_exist_ok=True)

        return work

    return make


def all_rounds(asked: dict[str, tuple[int, int, Callable]], chance: random.Random) -> list[dict]:
    """Rounds of at most so many kills of each kind, until as many have hit as were asked."""
    found = []
    for kind, (kills, most, make) in asked.items():
        hit = 0
        while hit < kills:
            with tempfile.TemporaryDirectory() as folder:
                slow = len(found) % 2 == 1
                each = min(most, kills - hit)
                options = {"slow": slow, "kills": each, "chance": chance}
                found.append(round_of(kind, make, folder=Path(folder), **options))
            hit += found[-1]["kills"]
            print(
                {k: v for k, v in found[-1].items() if k != "rows_stored_after_each_kill"},
                flush=True,
            )
    return found


def main() -> None:
    """Kill, resume, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="Of fudlr record.")
    parser.add_argument("--loop-kills", type=int, default=12)
    parser.add_argument("--train-kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", default="ml-100k")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["FUDLR_QUIET"] = "1"
    chance = random.Random(args.seed)
    config = merge(RunConfig(), {**SMALL, **RECORD, "data.source": args.source})
    if args.source == "synthetic":
        config = merge(config, TINY)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        Processes(chance, slow=False).undisturbed(lambda _: train_run(config, run) and None)
        asked = {
            "record": (args.kills, 10, recording(run)),
            "loop": (args.loop_kills, 6, loop(run)),
            "train": (args.train_kills, 3, training(config)),
        }
        rounds = all_rounds(asked, chance)
    good = all(each["content_equal"] and each["files_equal"] for each in rounds)
    given = {"kills": args.kills, "loop-kills": args.loop_kills, "train-kills": args.train_kills,
             "seed": args.seed, "source": args.source}  # fmt: skip
    command = " ".join(f"--{name} {value}" for name, value in given.items())
    kinds = {kind: sum(each["kills"] for each in rounds if each["process"] == kind)
             for kind in asked}  # fmt: skip
    result = {
        "command": f"python benchmarks/record_kills.py {command}",
        "machine": describe(),
        "kills": kinds,
        "all_equal": good,
        "rounds": rounds,
    }
    write_json(args.out, result)
    print(f"{kinds}: {'all equal' if good else 'DIFFERENT'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
