"""A head and its cross-entropy with gradients beside torch, which holds all logits.

    python benchmarks/cross_entropy.py
    python benchmarks/cross_entropy.py --heads 128x512x4000 --repeats 3 --out /dev/stdout

A head is rows x width x words. Two tasks: the loss with the gradient in the hidden states, as the
engine's label pass needs it, and with that of the weights as well. Rivals: torch's linear and
cross_entropy with autograd, and the same over blocks of rows of at most 2²⁴ logits. Answers are
compared before anything is timed. Times are medians of an interleaved run: processor time with one
thread, wall time with several. The result goes to benchmarks/results/cross_entropy.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from interleave import interleaved
from machine import describe
from torch import Tensor

from fudlr_ext.ops import linear_cross_entropy

HEADS = ("128x128x4000", "128x512x4000", "512x64x100000", "512x576x49152")
LOGITS = 2**24


def on_all_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.to(hidden.dtype).t(), targets, reduction="none")


def on_blocks(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    size = max(1, LOGITS // weight.shape[0])
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([on_all_logits(h, weight, t) for h, t in parts])


def with_gradients(loss: Any, given: tuple[Tensor, ...], weights: bool) -> tuple[Tensor, ...]:
    hidden, weight = (x.detach() for x in given[:2])
    leaves = [hidden.requires_grad_()] + ([weight.requires_grad_()] if weights else [])
    value = loss(hidden, weight, given[2])
    return value.detach(), *torch.autograd.grad(value.sum(), leaves)


def compare(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    worst = max(
        float((a.double() - b.double()).norm() / b.double().norm())
        for a, b in zip(got, expected, strict=True)
    )
    if worst > 1e-4:
        raise SystemExit(f"answers differ by {worst:.2g}; nothing was timed")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", nargs="+", default=HEADS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    default = Path(__file__).parent / "results" / "cross_entropy.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = "cpu_s" if args.threads == 1 else "wall_s"
    result: dict[str, Any] = {
        "command": f"python benchmarks/cross_entropy.py --heads {' '.join(args.heads)} "
        f"--repeats {args.repeats} --threads {args.threads}",
        "machine": describe(),
        "clock": clock,
        "heads": {},
    }
    ways = {"ours": linear_cross_entropy, "logits": on_all_logits, "blocks": on_blocks}
    for head in args.heads:
        rows, width, words = map(int, head.split("x"))
        generator = torch.Generator().manual_seed(0)
        given = (
            torch.randn(rows, width, generator=generator),
            torch.randn(words, width, generator=generator).mul_(width**-0.5),
            torch.randint(words, (rows,), generator=generator),
        )
        for weights in (False, True):
            work: dict[str, Callable[[], Any]] = {
                name: lambda way=way, g=given, w=weights: with_gradients(way, g, w)
                for name, way in ways.items()
            }
            worst = max(compare(work["ours"](), work[name]()) for name in ("logits", "blocks"))
            found = interleaved(work, args.repeats)
            seconds = {name: float(times[clock]) for name, times in found.items()}  # type: ignore[arg-type]
            result["heads"][f"{head}, {'hidden and weights' if weights else 'hidden'}"] = {
                "seconds": seconds,
                "times_torch": min(seconds["logits"], seconds["blocks"]) / seconds["ours"],
                "logits_bytes": 4 * rows * words,
                "largest_difference": worst,
                "times": found,
            }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    for name, part in result["heads"].items():
        print(name, {k: v for k, v in part.items() if k != "times"})


if __name__ == "__main__":
    main()
