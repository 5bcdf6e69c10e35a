"""Kill recording processes at random moments, resume, compare with an undisturbed store.

    python benchmarks/store_kills.py --kills 50

Each scenario records synthetic rows with one or two writer processes, kills them with SIGKILL at
random moments, resumes until all rows are there, and compares: content byte for byte, and each
shard file byte for byte. The result goes to benchmarks/results/store_kills.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from fudlr.gradients.store import Binding, Store, StoreWriter, fingerprint

ROWS, DIM, BATCH, SHARD_ROWS = 4000, 257, 13, 96
BINDING = Binding(*(fingerprint(name) for name in ("model", "adapter", "data", "order")))
DTYPES = ("bfloat16", "float32", "int8")


def synthetic_rows(ids: torch.Tensor, dim: int = DIM) -> torch.Tensor:
    """Rows that depend on the sample alone, in exact arithmetic, so that batches do not matter."""
    columns = torch.arange(dim)
    mixed = (ids[:, None] * 7919 + columns * 104729 + ids[:, None] * columns * 31) % 65521
    return mixed.float() / 65521 - 0.5


def record(folder: Path, dtype: str, writer: int, writers: int, seed: int) -> None:
    """Record what is missing of this writer's share, in a shuffled order, batch by batch."""
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))[writer::writers]
    with StoreWriter(
        folder, BINDING, DIM, dtype, writer=str(writer), shard_rows=SHARD_ROWS
    ) as store:
        for ids in store.missing(order).split(BATCH):
            store.append(ids, synthetic_rows(ids))


def start(folder: Path, dtype: str, writer: int, writers: int, seed: int) -> int:
    """Record in a process of its own; a fork, so that kills hit the recording, not an import."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        record(folder, dtype, writer, writers, seed)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def finish(child: int) -> bool:
    """Wait for a process; whether it was killed. Any other failure is an error."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status != 0:
        raise RuntimeError(f"a recording process failed with status {status}")
    return False


def same_files(left: Path, right: Path) -> bool:
    """Whether both folders hold the same shards, byte for byte."""
    names = sorted(path.name for path in left.glob("rows-*"))
    if names != sorted(path.name for path in right.glob("rows-*")):
        return False
    return all((left / name).read_bytes() == (right / name).read_bytes() for name in names)


def run_scenario(
    folder: Path, dtype: str, writers: int, seed: int, *, kills: int, chance: random.Random
) -> dict[str, object]:
    """Record with up to `kills` kills on the way, and compare."""
    whole, disturbed = folder / "whole", folder / "disturbed"
    begin = time.monotonic()
    for child in [start(whole, dtype, k, writers, seed) for k in range(writers)]:
        finish(child)
    span = time.monotonic() - begin
    done, cut_off, stored = 0, 0, []
    while done < kills:
        children = [start(disturbed, dtype, k, writers, seed) for k in range(writers)]
        for child in chance.sample(children, writers):
            # Short lives, so that there is work left for the next one to be killed at.
            time.sleep(chance.uniform(0.0, 2.0 * span / (kills + 1)))
            os.kill(child, signal.SIGKILL)
        for child in children:
            done += finish(child)
        cut_off += any(disturbed.glob(".rows-*"))
        if not any(disturbed.glob("rows-*")) and not (disturbed / "manifest.json").exists():
            continue
        stored.append(Store.open(disturbed, BINDING).n)
        if stored[-1] == ROWS:
            break
    for child in [start(disturbed, dtype, k, writers, seed) for k in range(writers)]:
        finish(child)
    left = Store.open(whole, BINDING, check="full")
    right = Store.open(disturbed, BINDING, check="full")
    return {
        "dtype": dtype,
        "writers": writers,
        "kills": done,
        "killed_within_a_shard": cut_off,
        "rows_stored_after_each_kill": stored,
        "rows": right.n,
        "content_equal": left.content_sha256() == right.content_sha256(),
        "files_equal": same_files(whole, disturbed),
        "leftovers": sorted(path.name for path in disturbed.glob(".rows-*")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    default = Path(__file__).parent / "results" / "store_kills.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(args.seed)
    scenarios: list[dict[str, object]] = []
    kills = 0
    while kills < args.kills:
        dtype, writers = DTYPES[len(scenarios) % 3], 1 + len(scenarios) % 2
        with tempfile.TemporaryDirectory() as folder:
            found = run_scenario(
                Path(folder),
                dtype,
                writers,
                len(scenarios),
                kills=min(8, args.kills - kills),
                chance=chance,
            )
        kills += int(str(found["kills"]))
        scenarios.append(found)
    good = all(
        found["content_equal"] and found["files_equal"] and found["rows"] == ROWS
        for found in scenarios
    )
    result = {
        "command": f"python benchmarks/store_kills.py --kills {args.kills} --seed {args.seed}",
        "kills": kills,
        "rows": ROWS,
        "dim": DIM,
        "shard_rows": SHARD_ROWS,
        "all_equal": good,
        "scenarios": scenarios,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{kills} kills in {len(scenarios)} scenarios: {'all equal' if good else 'DIFFERENT'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
