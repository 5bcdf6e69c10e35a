"""Kill a random one of several ranks at random moments, restart with another number of them.

    python benchmarks/rank_kills.py [--kills 30] [--seed 0]

`fudlr train` with checkpoints, `fudlr record` and `fudlr debias` on a small model, each by 2 or 3
ranks as torchrun would start them; a rank is ended by SIGKILL after a random part of the time that
an undisturbed run takes from its start. Noted are the seconds until all others have ended, and
whether they said who was gone. Where a rank dies before all have met, the others wait for it until
their launcher ends them, as torchrun does and this script. Killed work is started again with
another number of ranks, killed again, and at last left in peace; what it leaves is compared with
one process's undisturbed result. Writes benchmarks/results/rank_kills.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch
from common import RESULTS, bar, write_result
from fudlr.cli import main as fudlr
from fudlr.gradients.store import Store
from fudlr.gradients.store.shards import decode
from safetensors.torch import load_file

CONTEXT = multiprocessing.get_context("forkserver")
OPTIONS = ["data.source=synthetic", "data.k=5", "model.hidden=32", "model.heads=2",
           "model.kv_heads=1", "model.intermediate=24", "model.pretrain_epochs=3", "lora.rank=2",
           "train.epochs=6", "train.batch=50", "train.checkpoint=5",
           "debias.damping=0.03"]  # fmt: skip
MOST = 30.0  # seconds that survivors may take to end
PATIENCE = 15.0  # seconds until survivors are told to; torchrun tells them at once
PER_ROUND = 3  # kills of one piece of work


def words_of(kind: str, run: Path, out: Path) -> list[str]:
    """The command line of a piece of work."""
    if kind == "train":
        return ["train", *(word for each in OPTIONS for word in ("--set", each)), "--out", str(out)]
    if kind == "record":
        return ["record", str(run), "--out", str(out)]
    return ["debias", str(run), "--objective", "hellinger", "--out", str(out), "--force"]


def work(about: dict[str, str], log: Path, words: list[str]) -> None:
    """`fudlr` as one rank."""
    os.environ |= {"FUDLR_QUIET": "1", **about}
    torch.set_num_threads(1)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    sys.argv = ["fudlr", *words]
    fudlr()


def start(size: int, folder: Path, words: list[str]) -> list[Any]:
    """Ranks that do it together; their output is in `folder`."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    made = []
    for rank in range(size):
        about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        several = {name: str(value) for name, value in about.items()} if size > 1 else {}
        several |= {"MASTER_ADDR": "127.0.0.1"} if size > 1 else {}
        process = CONTEXT.Process(target=work, args=(several, folder / f"said-{rank}", words))
        process.start()
        made.append(process)
    return made


def ended(processes: list[Any], seconds: float) -> float | None:
    """Seconds until all have ended; None where some had to be killed."""
    begin = time.monotonic()
    for process in processes:
        process.join(max(0.0, begin + seconds - time.monotonic()))
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
        process.join()
    return None if hung else time.monotonic() - begin


def finish(size: int, folder: Path, words: list[str]) -> float:
    """Do it undisturbed; seconds from the start."""
    processes = start(size, folder, words)
    took = ended(processes, 600)
    if took is None or any(process.exitcode for process in processes):
        said = "\n".join(path.read_text() for path in folder.glob("said-*"))
        raise RuntimeError(f"work that was not disturbed failed:\n{said}")
    return took


def kill(size: int, folder: Path, words: list[str], chance: random.Random, span: float) -> Any:
    """Kill one rank on the way; what became of the others, None where they were done before."""
    processes, victim = start(size, folder, words), chance.randrange(size)
    time.sleep(chance.uniform(0.1, 0.7) * span)
    if any(not process.is_alive() for process in processes):
        ended(processes, MOST)
        return None
    os.kill(processes[victim].pid, signal.SIGKILL)
    begin, (took, early) = time.monotonic(), launcher(processes)
    if took is not None:
        took = time.monotonic() - begin
    others = [rank for rank in range(size) if rank != victim]
    if not any(processes[rank].exitcode for rank in others):
        return None  # all was done
    said = [(folder / f"said-{rank}").read_text() for rank in others]
    named = [any(f"{who} no longer" in text for who in names(victim, size)) for text in said]
    named = [yes or ("rank 0, or what" in text) for yes, text in zip(named, said, strict=True)]
    return {
        "ranks": size,
        "killed": victim,
        "seconds": None if took is None else round(took, 1),
        "codes": [processes[rank].exitcode for rank in others],
        "named": all(named),
        "by_themselves": early,
    }


def launcher(processes: list[Any]) -> tuple[float | None, bool]:
    """What torchrun does: survivors that are still there after a while are told to end.

    Returns:
        Seconds, None where they had to be killed; and whether they had ended by themselves.
    """
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and any(process.is_alive() for process in processes):
        time.sleep(0.05)
    early = not any(process.is_alive() for process in processes)
    for process in processes:
        process.terminate()
    return ended(processes, MOST - PATIENCE), early


def names(victim: int, size: int) -> list[str]:
    """How survivors may call it, together with one that ended for its sake."""
    pairs = [sorted({victim, other}) for other in range(size)]
    return [f"rank {', '.join(map(str, pair))}" for pair in pairs]


def differing(kind: str, one: Path, other: Path) -> list[str]:
    """What of two results is not equal within rounding."""
    found = []
    if kind == "debias":
        masks = [pl.read_parquet(each / "mask.parquet")["mask"] for each in (one, other)]
        found += ["mask"] * (not masks[0].equals(masks[1]))
    if kind != "record":
        left, right = (load_file(f / "adapter/adapter_model.safetensors") for f in (one, other))
        off = sum(float((left[n] - right[n]).square().sum()) for n in left) ** 0.5
        size = sum(float(value.square().sum()) for value in left.values()) ** 0.5
        found += [f"adapter by {off / size:.1e}"] * (off > 1e-4 * size)
    if kind == "debias":
        return found
    stores = [Store.open(f / "store" if kind == "train" else f, check="full") for f in (one, other)]
    if stores[0].counts.tolist() != stores[1].counts.tolist():
        return [*found, "steps"]
    for number in range(stores[0].steps):
        steps = [store.step(number) for store in stores]
        rows = [
            store.projection(step.segment).lift(decode(step.rows, step.scales))
            for store, step in zip(stores, steps, strict=True)
        ]
        same = torch.equal(steps[0].ids, steps[1].ids)
        if not same or (rows[0] - rows[1]).norm() > 1e-2 * rows[0].norm():
            return [*found, f"step {number}"]
    return found


def round_of(kind: str, run: Path, whole: Path, span: float, chance: random.Random) -> dict:
    """Some kills of one piece of work, each followed by another number of ranks, and the end."""
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name), Path(name) / "out"
        words, kills = words_of(kind, run, out), []
        for _ in range(PER_ROUND):
            size = chance.choice([2, 3])
            found = kill(size, folder, words, chance, span)
            if found is None:
                break
            kills.append(found)
        if kind == "record" or not out.exists():
            finish(chance.choice([1, 2, 3]), folder, words)
        left = [path.name for path in folder.glob("*.rank-*")]
        return {"work": kind, "kills": kills, "differing": differing(kind, whole, out),
                "leftovers": left}  # fmt: skip


def main() -> None:
    """Kill, restart, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    CONTEXT.set_forkserver_preload(["fudlr.cli", "fudlr.debias", "fudlr.output", "__main__"])
    torch.set_num_threads(1)
    chance, rounds, began = random.Random(args.seed), [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        run, spans, whole = Path(name) / "run", {}, {}
        for kind in ("train", "record", "debias"):
            whole[kind] = run if kind == "train" else Path(name) / kind
            spans[kind] = finish(1, Path(name), words_of(kind, run, whole[kind]))
            # Of two ranks, with what it takes to meet.
            spans[kind] = finish(2, Path(name), words_of(kind, run, Path(name) / f"{kind}-2"))
        while sum(len(each["kills"]) for each in rounds) < args.kills:
            kind = list(spans)[len(rounds) % len(spans)]
            rounds.append(round_of(kind, run, whole[kind], spans[kind], chance))
            print(rounds[-1], flush=True)
    command = f"python benchmarks/rank_kills.py --kills {args.kills} --seed {args.seed}"
    kills = [each for found in rounds for each in found["kills"]]
    hung = sum(each["seconds"] is None for each in kills)
    slowest = max((each["seconds"] for each in kills if each["seconds"] is not None), default=0.0)
    equal = sum(not each["differing"] for each in rounds) / len(rounds)
    own = [each for each in kills if each["by_themselves"]]
    named = sum(each["named"] for each in own) / max(1, len(own))
    bars = [
        bar("share of the results that equal an undisturbed one", equal, 1.0),
        bar("share of the kills that survivors named, of those after which they ended", named, 1.0),
        bar("kills after which a rank hung", hung, 0, least=False),
        bar("seconds until all ranks had ended, at most", slowest, MOST, least=False),
    ]
    about = {"kills": len(kills), "by_themselves": len(own), "spans": spans}
    about["seconds"] = round(time.monotonic() - began)
    write_result(RESULTS / "rank_kills.json", command, **about, bars=bars, rounds=rounds)
    sys.exit(0 if all(each["met"] for each in bars) else 1)


if __name__ == "__main__":
    main()
