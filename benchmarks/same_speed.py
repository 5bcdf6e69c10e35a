"""Products of this source tree and of another one, call by call in turn: is this one as fast?

    python benchmarks/same_speed.py /path/to/the/other/tree --hidden 128 256

Each tree has a process of its own, with its compiled library, one thread and the work of
workload.py; and 10^4 calls of each op, and a thousandth of them of the engine, with so little work
that what remains is the way there and back. Answers are compared first. Every round calls one and
then the other, and the next round the other way round; a figure is the median over rounds of the
other's processor time over this one's: above 1 this tree is faster. Result:
results/same_speed.json, or of the name --out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LEAST = 0.98
CALLS = ("sample_dots", "hvp", "ggn_vp")
REPEATS = 10_000


def works(hidden: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name: the engine at one size, or at size 0 tiny calls."""
    import torch  # noqa: PLC0415  of this process's tree
    from workload import FACE, LABELS, SIZES, Work  # noqa: PLC0415

    from fudlr_ext.ops import OPS  # noqa: PLC0415
    from fudlr_ext.testing import OP_CASES, as_tuple  # noqa: PLC0415

    torch.set_num_threads(1)
    work = Work(hidden or min(SIZES))
    if hidden:
        return {
            name: partial(getattr(work.engine, name), *FACE, work.batch, work.vectors)
            for name in CALLS
        }

    def repeated(call: Callable[[], Any], times: int) -> Any:
        for _ in range(times):
            result = call()
        return as_tuple(result)[0]

    few = {name: rows[:1, -LABELS - 1 :] for name, rows in work.batch.items()}
    dots = partial(work.engine.sample_dots, *FACE, few, work.vectors[:1])
    found = {"engine.sample_dots": partial(repeated, dots, REPEATS // 1000)}
    for case in {case.name: case for case in reversed(OP_CASES)}.values():
        given = list(case.make(case.small[0], torch.float32))
        while given[-1] is None:  # what users leave out, and name otherwise
            given.pop()
        found[case.name] = partial(repeated, partial(OPS[case.name], *given), REPEATS)
    return found


def serve(hidden: int) -> None:
    """Answer each line, the name of a call, by the processor seconds that it took."""
    calls = works(hidden)
    for line in sys.stdin:
        name = line.strip()
        if name == "names":
            print(json.dumps(list(calls)), flush=True)
            continue
        start = time.process_time()
        result = calls[name]()
        seconds = time.process_time() - start
        numbers = result.double().flatten()[:: 1 + result.numel() // 500].tolist()
        print(json.dumps([seconds, numbers]), flush=True)


class Tree:
    """A process that works with one tree's engine."""

    def __init__(self, path: Path, hidden: int) -> None:
        paths = os.pathsep.join([str(path), str(path / "python")])
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(path), "--serve", str(hidden)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": paths, "FUDLR_QUIET": "1"},
        )  # fmt: skip

    def call(self, name: str) -> Any:
        """Seconds and numbers of a call; the calls there are of "names"."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def compared(args: argparse.Namespace, hidden: int) -> list[dict[str, Any]]:
    """The rows of one size."""
    trees = {"this": Tree(ROOT, hidden), "other": Tree(args.other, hidden)}
    rows, rounds = [], args.rounds
    for name in args.calls if hidden else trees["this"].call("names"):
        first = {tree: process.call(name)[1] for tree, process in trees.items()}
        size = max(map(abs, first["other"]))
        worst = max(abs(a - b) for a, b in zip(*first.values(), strict=True)) / size
        if worst > 1e-4:
            raise SystemExit(f"{name} at {hidden}: answers differ by {worst:.2g}; nothing timed")
        times: dict[str, list[float]] = {tree: [] for tree in trees}
        for i in range(rounds):
            for tree in list(trees)[:: 1 if i % 2 else -1]:
                times[tree].append(trees[tree].call(name)[0])
        each = sorted(b / a for a, b in zip(times["this"], times["other"], strict=True))
        rows.append({
            "hidden": hidden, "call": name, "difference": worst, "rounds": rounds,
            "seconds": {tree: statistics.median(found) for tree, found in times.items()},
            "speed": statistics.median(each),
            "middle_half": [each[rounds // 4], each[-1 - rounds // 4]],
        })  # fmt: skip
        print(hidden, name, round(rows[-1]["speed"], 3), rows[-1]["middle_half"], flush=True)
    for tree in trees.values():
        tree.process.communicate()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--hidden", type=int, nargs="+", default=[0, 128, 256])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", nargs="+", choices=CALLS, default=list(CALLS))
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", default="same_speed", help="name of the result file")
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.serve)
        return
    from common import RESULTS, bar, write_result  # noqa: PLC0415

    rows = [row for hidden in args.hidden for row in compared(args, hidden)]
    commit = ["git", "-C", str(args.other), "describe", "--always", "--dirty"]
    write_result(
        RESULTS / f"{args.out}.json",
        f"python benchmarks/same_speed.py TREE --hidden {' '.join(map(str, args.hidden))} "
        f"--calls {' '.join(args.calls)} --rounds {args.rounds} --out {args.out}",
        other=subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip(),
        bars=[bar(f"{row['call']}, hidden {row['hidden']}", row["speed"], LEAST) for row in rows],
        rows=rows,
    )


if __name__ == "__main__":
    main()
