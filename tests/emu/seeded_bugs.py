"""Runs the kernels of seeded.cu with one bug, and says whether anything was noticed.

Prints "values" where the result is wrong under some schedule, "error: ..." where the emulator
refuses to go on, "race" where the checker saw one, and "clean" otherwise.
"""

from __future__ import annotations

import ctypes
import sys
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


def main() -> None:
    """Look for one bug: its number, the variant, orders separated by commas, seeds."""
    bug, variant, orders, seeds = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    library = load(f"seeded_{variant}")
    for name in ("seeded_tiles", "seeded_warp", "seeded_product"):
        getattr(library, name).restype = ctypes.c_char_p
    library.emulator_reset()
    print(look(library, bug, tuple(orders.split(",")), seeds))


if __name__ == "__main__":
    main()
