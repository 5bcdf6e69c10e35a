"""A step of the mask on 10⁷ samples × 4 metrics beside what copying allows, and beside torch.

    python benchmarks/mask_step.py                     # 10⁷ samples, 4 metrics, 1 thread
    python benchmarks/mask_step.py --samples 1000000 --out /dev/stdout

A step must read n·k influences and n logits and 2 n moments, and write the last three:
4·n·(k + 6) bytes in float32. Copying is `torch.Tensor.copy_` between two arrays of as many bytes as
that together, measured in the same interleaved run. Rivals: Adam written with torch's operations in
place, as few passes as they allow, and torch.optim.Adam on autograd's gradient. The objective is
not linear in the metrics, so that its gradient hangs on all samples. Answers are compared after
several steps before anything is timed. Times are medians: processor time with one thread, wall time
with several. The result goes to benchmarks/results/mask_step.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from interleave import interleaved
from machine import describe
from torch import Tensor

from fudlr_ext.ops import mask_step, mask_sums

RATE, PRICE, EPS, COMPARED = 0.05, 1e-7, 1e-12, 5
BETAS = (0.9, 0.99)


def objective(changes: Tensor) -> Tensor:
    """Distances from where each metric should go, which none of them reaches alone."""
    places = torch.arange(1.0, len(changes) + 1, dtype=changes.dtype, device=changes.device)
    return ((changes + 1) * places).square().sum()


def slope_of(changes: Tensor) -> Tensor:
    """∂f/∂c [k] at c [k]."""
    leaf = changes.detach().requires_grad_()
    return torch.autograd.grad(objective(leaf), leaf)[0]


def zeros(influence: Tensor) -> Tensor:
    """A number a sample: as wide as influences, but for 16-bit ones."""
    dtype = torch.promote_types(influence.dtype, torch.float32)
    return influence.new_zeros(len(influence), dtype=dtype)


class Ours:
    def __init__(self, influence: Tensor) -> None:
        self.influence = influence
        self.z, self.first, self.second = (zeros(influence) for _ in range(3))
        self.z.fill_(-3)
        self.sums, self.count = mask_sums(influence, self.z), 0

    def step(self) -> None:
        self.count += 1
        weights = slope_of(self.sums.changes).to(self.z.dtype)
        self.sums = mask_step(
            self.influence,
            weights,
            self.z,
            self.first,
            self.second,
            step=self.count,
            price=PRICE,
            rate=RATE,
            decay_first=BETAS[0],
            decay_second=BETAS[1],
            eps=EPS,
            limit=float("inf"),
        )


class InPlace:
    """The same with torch's operations, into room that is there."""

    def __init__(self, influence: Tensor) -> None:
        self.influence = influence
        self.z, self.first, self.second, self.mask, self.room = (zeros(influence) for _ in range(5))
        self.z.fill_(-3)
        self.count = 0

    def step(self) -> None:
        self.count += 1
        torch.sigmoid(self.z, out=self.mask)
        influence = self.influence.to(self.z.dtype)
        weights = slope_of(self.mask @ influence)
        gradient = torch.mv(influence, weights, out=self.room).add_(PRICE)
        gradient.mul_(self.mask).mul_(self.mask.neg_().add_(1))
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        first, second = (1 - beta**self.count for beta in BETAS)
        size = torch.div(self.second, second, out=self.room).sqrt_().add_(EPS)
        self.z.addcdiv_(self.first, size, value=-RATE / first)


class Autograd:
    """As one would write it first."""

    def __init__(self, influence: Tensor) -> None:
        self.influence = influence
        self.z = zeros(influence).fill_(-3).requires_grad_()
        self.adam = torch.optim.Adam([self.z], lr=RATE, betas=BETAS, eps=EPS)

    def step(self) -> None:
        mask = self.z.sigmoid()
        value = objective(mask @ self.influence.to(mask.dtype)) + PRICE * mask.sum()
        self.adam.zero_grad()
        value.backward()
        self.adam.step()


KINDS = {"ours": Ours, "torch in place": InPlace, "torch.optim.Adam": Autograd}


def way_of(kind: Any, influence: Tensor) -> Tensor:
    """How far the logits went after some steps from the beginning."""
    work = kind(influence)
    for _ in range(COMPARED):
        work.step()
    return work.z.detach() + 3


def compare(influence: Tensor) -> float:
    """How far logits are apart after some steps, relative to how far they went; ends the run where
    that is much. Single logits may differ by a step where a gradient's terms all but cancel.
    """
    ways = {name: way_of(kind, influence).double() for name, kind in KINDS.items()}
    ours = ways.pop("ours")
    worst = max(float((ours - other).norm() / ours.norm()) for other in ways.values())
    if worst > 1e-4:
        raise SystemExit(f"logits differ by {worst:.2g} of their way; nothing was timed")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--metrics", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    default = Path(__file__).parent / "results" / "mask_step.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    n, k = args.samples, args.metrics
    generator = torch.Generator().manual_seed(0)
    influence = torch.randn(n, k, generator=generator).mul_(10 / n)
    worst = compare(influence)
    moved = 4 * n * (k + 6)
    source, target = torch.ones(moved // 8), torch.zeros(moved // 8)
    work: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source)}
    work |= {name: kind(influence).step for name, kind in KINDS.items()}
    found = interleaved(work, args.repeats)
    clock = "cpu_s" if args.threads == 1 else "wall_s"
    seconds = {name: float(times[clock]) for name, times in found.items()}  # type: ignore[arg-type]
    share = seconds["copy"] / seconds["ours"]
    result: dict[str, Any] = {
        "command": f"python benchmarks/mask_step.py --samples {n} --metrics {k} "
        f"--repeats {args.repeats} --threads {args.threads}",
        "machine": describe(),
        "clock": clock,
        "samples": n,
        "metrics": k,
        "bytes_moved": moved,
        "copy_gb_per_s": moved / seconds["copy"] / 1e9,
        "largest_difference": worst,
        "seconds": seconds,
        "times_torch": seconds["torch in place"] / seconds["ours"],
        "bars": [
            {
                "bar": "share of the measured copy bandwidth, at least",
                "measured": share,
                "threshold": 0.6,
                "met": share >= 0.6,
            }
        ],
        "times": found,
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({name: part for name, part in result.items() if name != "times"}, indent=2))


if __name__ == "__main__":
    main()
