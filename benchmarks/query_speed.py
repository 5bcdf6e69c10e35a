"""Scores of every stored row for 32 prompts, and their top 100: our store beside bergson's index.

    python benchmarks/query_speed.py    # 10⁶ rows × 2,000: 6.1 GB of disk, 4 GB of memory
    python benchmarks/query_speed.py --rows 40000 --out /dev/stdout

Writes random rows as a store of int8 and the same numbers, without rounding, as bergson's index of
bfloat16, into a temporary folder. Answers are compared first. Then, in turns: reading the store's
files, asking the store, and asking bergson, each from the disk (files are dropped from the page
cache) and again from the page cache; and the search alone, our rows in memory as int8, bergson's
as float32 and as bfloat16. bergson's `Attributor` holds all rows in memory, so its index is cut
into parts and their times are added: that saves it memory, and costs it nothing.

Needs bergson (benchmarks/rivals/requirements.txt). Writes benchmarks/results/query_speed.json.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, bar, write_result
from fudlr.gradients import Projection
from fudlr.gradients.store import Binding, Store, StoredRows, StoreWriter, digest
from fudlr.gradients.store.bergson import is_index, write_index
from fudlr.query.answers import least
from torch import Tensor

from fudlr_ext.ops import row_dots

BINDING = Binding(*(digest(name) for name in ("model", "adapter", "data", "order")))
MATRICES, BATCH, TOP = 10, 500, 100
PLACES = ("disk", "page cache")
SEARCHED = {
    "bergson, search in float32": torch.float32,
    "bergson, search in bfloat16": torch.bfloat16,
}
"""Types of rows that it holds in memory already."""


def write(folder: Path, samples: range, dim: int) -> Store:
    """A store of whole numbers times powers of two, which int8 and bfloat16 both hold exactly."""
    width = dim // MATRICES
    shapes = {f"layers.{at}.lora_A.weight": (1, width) for at in range(MATRICES)}
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randint(-127, 128, (BATCH, dim), generator=draw).float()
    sizes = 2.0 ** torch.randint(-12, -6, (dim // 128 + 1,), generator=draw)
    with StoreWriter(folder, "synthetic", 0, "int8") as store:
        store.use(Projection(shapes, {name: torch.eye(width) for name in shapes}))
        for start in samples[::BATCH]:
            moved = numbers.roll(start // BATCH % dim, dims=1)
            moved += 1.0 * (start // BATCH >= dim) * (moved < 127)  # rolled round: other rows
            moved[:, ::128] = 127.0  # of every scale, so that it is a power of two
            store.append(
                torch.arange(start, start + BATCH), moved * sizes.repeat_interleave(128)[:dim]
            )
        store.finish(BINDING)
    return Store.open(folder)


def ask(folder: Path, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Our top 100: scores and places, `[k, 100]`."""
    scores = StoredRows(Store.open(folder)).dots(vectors)
    index = torch.stack([least(-column, TOP) for column in scores.T.contiguous()])
    return scores.T.gather(1, index), index


def search(held: list[tuple[Tensor, Tensor | None]], vectors: Tensor) -> Tensor:
    """The same of rows in memory, as they are stored."""
    scores = torch.cat([row_dots(rows, vectors, scales) for rows, scales in held])
    return torch.stack([least(-column, TOP) for column in scores.T.contiguous()])


def queries(vectors: Tensor) -> dict[str, Tensor]:
    """By module, as bergson takes them."""
    parts = vectors.chunk(MATRICES, 1)
    return {f"layers.{at}.lora_A": part for at, part in enumerate(parts)}


def joined(found: list[tuple[Tensor, Tensor]], part: int) -> tuple[Tensor, Tensor]:
    """The top 100 of all parts."""
    values, index = torch.cat([scores for scores, _ in found], 1).topk(TOP)
    places = torch.cat([each + at * part for at, (_, each) in enumerate(found)], 1)
    return values, places.gather(1, index)


def drop(folder: Path) -> None:
    """Out of the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(folder: Path) -> None:
    """Every file once, as `cat` does."""
    buffer = bytearray(2**22)
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


class Clock:
    """Wall and CPU seconds of named pieces, a list of each round's."""

    def __init__(self) -> None:
        self.all: dict[str, dict[str, list[float]]] = {}

    def time(self, name: str, work: Callable[[], Any], *, more: bool = False) -> Any:
        """Run and count `work`; `more` adds it to the round that is there."""
        began, used = time.perf_counter(), time.process_time()
        found = work()
        spent = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - used}
        kept = self.all.setdefault(name, {"wall_s": [], "cpu_s": []})
        for unit, seconds in spent.items():
            if more:
                kept[unit][-1] += seconds
            else:
                kept[unit].append(seconds)
        return found

    def medians(self) -> dict[str, dict[str, Any]]:
        return {
            name: {**{unit: statistics.median(v) for unit, v in each.items()}, "all": each}
            for name, each in self.all.items()
        }


def rival(clock: Clock, indexes: list[Path], asked: dict[str, Tensor], part: int) -> Any:
    """bergson's answer, part by part, from the disk and from the page cache, and its searches."""

    attributor = importlib.import_module("bergson").Attributor

    def search(name: str, index: Path, *, opened: bool, **options: Any) -> Any:
        """The answer; its time counts with or without that of opening the index."""
        more = index != indexes[0]
        if opened:
            held = clock.time(name, lambda: attributor(index), more=more)
        else:
            held = attributor(index, **options)
        return clock.time(name, lambda: held.search(asked, TOP), more=opened or more)

    found = []
    for index in indexes:
        drop(index)
        found.append(search("bergson, disk", index, opened=True))
        search("bergson, page cache", index, opened=True)
        for name, dtype in SEARCHED.items():
            search(name, index, opened=False, dtype=dtype)
    return joined(found, part)


def main() -> None:
    """Write, compare, time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=2000)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="Files that are kept, and used again.")
    parser.add_argument("--write-only", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "query_speed.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    part = given.rows // given.parts
    vectors = torch.randn(given.prompts, given.dim, generator=torch.Generator().manual_seed(1))
    clock = Clock()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        store, some = folder / "store", folder / "part"
        indexes = [folder / f"index-{at}" for at in range(given.parts)]
        for at, index in enumerate(indexes):
            if not is_index(index):
                written = write(some, range(at * part, (at + 1) * part), given.dim)
                write_index(written, index, "bfloat16")
                shutil.rmtree(some)
        if not store.is_dir():
            write(store, range(given.rows), given.dim)
        if given.write_only:
            return
        size = Store.open(store).bytes
        for round_ in range(given.rounds):
            for name in PLACES:
                if name == "disk":
                    drop(store)
                clock.time(f"read, {name}", lambda: read(store))
                if name == "disk":
                    drop(store)
                scores, index = clock.time(f"fudlr, {name}", lambda: ask(store, vectors))
            held = [window.read() for window in Store.open(store).windows()]
            again = clock.time("fudlr, search", lambda held=held: search(held, vectors))
            assert torch.equal(again, index)
            del held
            theirs, places = rival(clock, indexes, queries(vectors), part)
            if round_ == 0:
                pairs = zip(index.tolist(), places.tolist(), strict=True)
                same = [set(ours) == set(other) for ours, other in pairs]
                off = float((scores - theirs).abs().max() / scores.abs().max())
                print(f"same top {TOP}: {sum(same)} of {len(same)}; scores within {off:.1g}")
    found = clock.medians()
    wall = {name: each["wall_s"] for name, each in found.items()}
    alone = min(wall[name] for name in SEARCHED)
    write_result(
        given.out,
        "python benchmarks/query_speed.py",
        rows=given.rows,
        dim=given.dim,
        prompts=given.prompts,
        store_gb=size / 1e9,
        same_top={"prompts": sum(same), "scores_off": off},
        times=found,
        bars=[
            bar("share of the read bandwidth", wall["read, disk"] / wall["fudlr, disk"], 0.6),
            *(
                bar(f"times bergson, {at}", wall[f"bergson, {at}"] / wall[f"fudlr, {at}"], 3.0)
                for at in PLACES
            ),
            bar("times bergson, rows in memory", alone / wall["fudlr, search"], 3.0),
        ],
    )


if __name__ == "__main__":
    main()
