"""Products with stored rows G [n, p] beside torch's, and beside what memory and adders allow.

    python benchmarks/row_products.py                      # 10⁵ rows × 2,048, 4 vectors, 1 thread
    python benchmarks/row_products.py --rows 10000 --out /dev/stdout

The fused Gᵀ(G Vᵀ) must read n·p numbers once and do 2·n·p·k multiply-adds. Both rates are measured
in the same interleaved run, with the same threads: reading by `torch.sum` over 1 GiB, multiply-adds
by torch's float32 matrix product of 2,048². Times are medians: processor time with one thread, wall
time with several. The result goes to benchmarks/results/row_products.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fudlr.gradients.store.encoding import decode, encode, room
from interleave import interleaved
from machine import describe

from fudlr_ext.ops import row_dots, row_gram, row_sums

SIDE = 2048
TILE = 256


def stored(rows: int, dim: int, dtype: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Normal numbers as a store holds them."""
    codes, scales = room(rows, dim, dtype)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, rows, 10_000):
        cut = slice(start, min(start + 10_000, rows))
        part = torch.randn(cut.stop - cut.start, dim, generator=generator)
        encode(part, codes[cut], None if scales is None else scales[cut])
    return codes, scales


def torch_gram(
    codes: torch.Tensor,
    scales: torch.Tensor | None,
    v: torch.Tensor,
    tile: int = TILE,
    decoded: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] = decode,
) -> torch.Tensor:
    """The same in torch, as fast as it was found to go: tiles as float32, two GEMMs a tile."""
    total = torch.zeros(v.shape, dtype=torch.float64, device=v.device)
    for start in range(0, codes.shape[0], tile):
        cut = slice(start, start + tile)
        part = codes[cut]
        if part.dtype != torch.float32:
            part = decoded(part, None if scales is None else scales[cut])
        total += (part @ v.T).T @ part
    return total


def compare(name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    error = float((got.double() - expected.double()).norm() / expected.double().norm())
    if error > 1e-4:
        raise SystemExit(f"{name}: answers differ by {error:.2g}; nothing was timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--vectors", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    default = Path(__file__).parent / "results" / "row_products.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    v = torch.randn(args.vectors, args.dim, generator=torch.Generator().manual_seed(1))
    ones = torch.ones(args.vectors, args.rows)
    array, square = torch.ones(2**28), torch.randn(SIDE, SIDE)
    work: dict[str, Callable[[], Any]] = {"read": array.sum, "mm": lambda: square @ square}
    bytes_of = {}
    for dtype in ("float32", "bfloat16", "int8"):
        codes, scales = stored(args.rows, args.dim, dtype)
        bytes_of[dtype] = codes.nbytes + (0 if scales is None else scales.nbytes)
        given = (codes, scales)
        compare(dtype, row_gram(codes, v, None, scales)[1], torch_gram(*given, v))
        work |= {
            f"{dtype} gram": lambda g=given: row_gram(g[0], v, None, g[1]),
            f"{dtype} gram torch": lambda g=given: torch_gram(*g, v),
            f"{dtype} dots": lambda g=given: row_dots(g[0], v, g[1]),
            f"{dtype} sums": lambda g=given: row_sums(g[0], ones, g[1]),
        }
    found = interleaved(work, args.repeats)
    clock = "cpu_s" if args.threads == 1 else "wall_s"
    seconds = {name: float(times[clock]) for name, times in found.items()}  # type: ignore[arg-type]
    read = array.nbytes / seconds["read"]
    adds = SIDE**3 / seconds["mm"]
    result: dict[str, Any] = {
        "command": f"python benchmarks/row_products.py --rows {args.rows} --dim {args.dim} "
        f"--vectors {args.vectors} --repeats {args.repeats} --threads {args.threads}",
        "machine": describe(),
        "clock": clock,
        "read_gb_per_s": read / 1e9,
        "multiply_adds_g_per_s": adds / 1e9,
        "products": {},
        "times": found,
    }
    work_done = args.rows * args.dim * args.vectors
    for dtype, size in bytes_of.items():
        for op, passes in (("gram", 2), ("dots", 1), ("sums", 1)):
            limit = max(size / read, passes * work_done / adds)
            ours = seconds[f"{dtype} {op}"]
            entry = {
                "seconds": ours,
                "limit_seconds": limit,
                "limited_by": "memory" if size / read == limit else "multiply-adds",
                "share_of_limit": limit / ours,
            }
            if op == "gram":
                entry["times_torch"] = seconds[f"{dtype} gram torch"] / ours
            result["products"][f"{dtype} {op}"] = entry
    text = json.dumps(result, indent=2) + "\n"
    args.out.write_text(text)
    print(json.dumps({k: v for k, v in result.items() if k != "times"}, indent=2))


if __name__ == "__main__":
    main()
