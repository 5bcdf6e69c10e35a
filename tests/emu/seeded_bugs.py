"""Runs the kernels of seeded.cu with one bug after another, and says what was noticed of each.

Prints, as JSON by bug: "values" where the result is wrong under some schedule, "error: ..." where
the emulator refuses to go on, "race" where the checker saw one, and "clean" otherwise; or what a
sanitizer printed before it ended the process. Each bug has a process of its own, forked when torch
is there, which takes longer than the bug.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from itertools import product

import torch
from emulation import load, report, schedule

BUGS = (
    "none",
    "no barrier after the load",
    "no barrier at the tile's end",
    "no barrier after the reduction",
    "shuffle in a branch",
    "barrier in a branch",
    "global overrun",
    "shared overrun",
    "unwritten output",
    "wrong fragment",
    "two blocks, one output",
    "no barrier in a warp",
)
BLOCKS, BLOCK, TILES, ROUNDS = 2, 64, 3, 2


def _tiles(library: ctypes.CDLL, bug: int) -> tuple[bytes | None, bool]:
    whole = torch.randn(BLOCKS, TILES, BLOCK)
    sums = whole.sum(1).roll(-1, 1)
    totals = sums.sum(1, keepdim=True) * torch.tensor([1.0, 2.0])
    out = torch.full((BLOCKS, BLOCK + ROUNDS), torch.nan)
    said = library.seeded_tiles(
        ctypes.c_void_p(whole.data_ptr()), ctypes.c_void_p(out.data_ptr()), BLOCKS, bug
    )
    return said, torch.allclose(out, torch.cat([sums, totals], 1), atol=1e-4)


def _warp(library: ctypes.CDLL, bug: int) -> tuple[bytes | None, bool]:
    row, out = torch.randn(32), torch.full((32,), torch.nan)
    said = library.seeded_warp(
        ctypes.c_void_p(row.data_ptr()), ctypes.c_void_p(out.data_ptr()), bug
    )
    return said, torch.equal(out, row.roll(1))


def _product(library: ctypes.CDLL, bug: int) -> tuple[bytes | None, bool]:
    a, b = torch.randn(16, 16).bfloat16(), torch.randn(16, 8).bfloat16()
    d = torch.full((16, 8), torch.nan)
    pointers = (ctypes.c_void_p(x.data_ptr()) for x in (a, b, d))
    said = library.seeded_product(*pointers, bug)
    return said, torch.allclose(d, a.float() @ b.float(), atol=1e-5)


def look(library: ctypes.CDLL, bug: int, orders: tuple[str, ...], seeds: int) -> str:
    """Return what was noticed of a bug under these orders and seeds."""
    torch.manual_seed(0)
    for order, seed in product(orders, range(seeds)):
        with schedule(library, order, seed):
            for kernel in (_tiles, _warp, _product):
                said, right = kernel(library, bug)
                if said is not None:
                    return f"error: {said.decode()}"
                if not right and report(library) is None:
                    return f"values: {order}"
    seen = report(library)
    if seen and seen["races"]:
        return f"race: {seen['races'][0]['kind']}"
    return "clean"


def heard(library: ctypes.CDLL, bug: int, orders: tuple[str, ...], seeds: int) -> str:
    """Return what a process of its own prints and complains of."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            print(look(library, bug, orders, seeds), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        said.seek(0)
        return said.read().decode()


def main() -> None:
    """Look for bugs: the variant, then names, orders and seeds of each as JSON."""
    torch.set_num_threads(1)  # no thread is there that a fork would miss
    library = load(f"seeded_{sys.argv[1]}")
    for name in ("seeded_tiles", "seeded_warp", "seeded_product"):
        getattr(library, name).restype = ctypes.c_char_p
    library.emulator_reset()
    print(json.dumps({
        bug: heard(library, BUGS.index(bug), tuple(orders), seeds)
        for bug, orders, seeds in json.loads(sys.argv[2])
    }))  # fmt: skip


if __name__ == "__main__":
    main()
