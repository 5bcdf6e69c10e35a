"""Counts the global memory that the fused products kernel asks for, and prints it as JSON.

The checker counts the 32-byte sectors that each instruction of a warp touches, twice where two
instructions touch one, though L1 would serve the second. Beside it the bytes that the op must move:
the factors once, the vectors once a block (a block is a chunk of one sample's positions here), the
products once.
"""

from __future__ import annotations

import json

import torch
from emulation import load, report, source_lines

from fudlr_ext.testing import OP_CASES, Shape

# A layer of rank 16 as the kernels cut it: 1,024 columns are two tiles of float32, one of bfloat16
# in fused multiply-adds (rank 8) and eight on tensor cores. One sample of 384 positions: one chunk.
CASES = (
    (Shape((384,), 16, 1024, 8), torch.float32),
    (Shape((384,), 8, 1024, 8), torch.bfloat16),
    (Shape((384,), 64, 1024, 8), torch.bfloat16),
)
SECTOR = 32


def counted(library, shape: Shape, dtype: torch.dtype) -> dict:
    """One case: sectors' bytes, what must be moved, and the lines that ask for most."""
    case = next(case for case in OP_CASES if case.name == "sample_dots")
    arguments = case.make(shape, dtype)
    library.emulator_reset()
    torch.ops.fudlr_emulated.sample_dots(*arguments)
    sites = [site for site in report(library)["sites"] if site["space"] == "global"]
    moved = SECTOR * sum(site["sectors"] for site in sites)
    left, right, vectors, _ = arguments
    products = 4 * len(shape.lengths) * shape.extra
    must = sum(x.numel() * x.element_size() for x in (left, right, vectors)) + products
    largest = sorted(sites, key=lambda site: -site["sectors"])[:4]
    lines = source_lines("emulated_check", [site["code"] for site in largest])
    return {
        "shape": str(shape),
        "dtype": str(dtype),
        "moved_bytes": moved,
        "must_bytes": must,
        "ratio": moved / must,
        "largest": [
            {"line": line, "bytes": SECTOR * site["sectors"], "width": site["width"]}
            for line, site in zip(lines, largest, strict=True)
        ],
    }


def main() -> None:
    """Print every case."""
    library = load("emulated_check")
    print(json.dumps([counted(library, *case) for case in CASES], indent=1))


if __name__ == "__main__":
    main()
