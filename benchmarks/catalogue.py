"""Expectations over a large catalogue, with gradients, beside chunked torch.

    python benchmarks/catalogue.py                      # 10⁶ items, 512 users, width 64, 1 thread
    python benchmarks/catalogue.py --items 20000 --out /dev/stdout

The mean over users of p C for four value columns, p = softmax(h Eᵀ), and its gradient in h and E.
Rivals: torch in chunks of items, online softmax forward, probabilities formed again backward, the
fastest of several sizes of chunks; and, with --full, all logits with autograd. Beside them: the
time of the four products n·M·w alone (scores twice, both gradients), at the rate of torch's product
of 2,048² in the same run. All answers are compared with float64's before anything is timed. Times
are medians of an interleaved run: processor time with one thread, wall time with several. Peak
memory beyond inputs and outputs is that of a process of its own (Linux). The result goes to
benchmarks/results/catalogue.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import describe, interleaved
from torch import Tensor

from fudlr_ext.ops import catalogue_mean, catalogue_top

COLUMNS, TOP = 4, 10
SIDE, PRODUCTS = 2048, 4
CHUNKS = (1_000, 4_000, 16_000, 64_000)
OURS, RIVALS = 1e-5, 1e-4
"""The largest relative error beside float64. BLAS adds a chunk's items one after the other in
float32: at 64,000 a chunk that is 4e-5."""
Result = tuple[Tensor, Tensor, Tensor]
"""The mean over users of p C [c], and the gradients of its sum weighed 1, 2, … in h and E."""


def inputs(
    users: int, items: int, width: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, ...]:
    """h, E, C and the weights of the columns."""
    generator = torch.Generator(device).manual_seed(0)
    random = partial(torch.randn, generator=generator, device=device)
    h = random(users, width)
    e = random(items, width).mul_(width**-0.5).to(dtype)
    # Values that hang on the items: of others the gradient in h would be what rounding leaves.
    values = (4 * e.float() @ random(width, COLUMNS)).sigmoid()
    return h, e, values, torch.arange(1.0, COLUMNS + 1, device=device)


def with_autograd(h: Tensor, e: Tensor, weights: Tensor, expectation: Any) -> Result:
    h, e = h.clone().requires_grad_(), e.detach().requires_grad_()
    mean = expectation(h, e).mean(0)
    return mean.detach(), *torch.autograd.grad(mean @ weights, (h, e))


def ours(h: Tensor, e: Tensor, c: Tensor, weights: Tensor) -> Result:
    return with_autograd(h, e, weights, lambda h, e: catalogue_mean(h, e, c)[0])


def full(h: Tensor, e: Tensor, c: Tensor, weights: Tensor) -> Result:
    return with_autograd(h, e, weights, lambda h, e: (h @ e.to(h.dtype).t()).softmax(1) @ c)


class Chunks:
    """Scores of all users with some items at a time, always in the same place."""

    def __init__(self, h: Tensor, e: Tensor, size: int) -> None:
        self.h, self.e, self.size = h, e, min(size, len(e))
        self.room = h.new_empty(len(h), self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, slice]]:
        for start in range(0, len(self.e), self.size):
            cut = slice(start, min(start + self.size, len(self.e)))
            part = self.e[cut].to(self.h.dtype)
            yield torch.mm(self.h, part.t(), out=self.room[:, : len(part)]), part, cut


def chunked_mean(chunks: Chunks, c: Tensor) -> tuple[Tensor, Tensor]:
    """p C [n, c] and log Σ exp [n, 1]: an online softmax, operations in place."""
    h = chunks.h
    most = h.new_full((len(h), 1), -torch.inf)
    sums, totals = h.new_zeros(len(h), 1), h.new_zeros(len(h), c.shape[1])
    for s, _, cut in chunks:
        above = torch.maximum(most, s.amax(1, keepdim=True))
        shrink = (most - above).exp_()
        s.sub_(above).exp_()
        sums.mul_(shrink).add_(s.sum(1, keepdim=True))
        # Not addmm_: BLAS adds item after item to the running totals, and beside those most of a
        # million items are too small (the mean was 7e-4 off, and the gradients 2e-3 with it).
        totals.mul_(shrink).add_(s @ c[cut])
        most = above
    return totals / sums, most + sums.log()


def chunked(h: Tensor, e: Tensor, c: Tensor, weights: Tensor, chunk: int) -> Result:
    """The same in torch without autograd: operations in place, matrix products into place."""
    chunks = Chunks(h, e, chunk)
    mean, lse = chunked_mean(chunks, c)
    slope = (weights / len(h)).expand(len(h), -1)
    shift = (slope * mean).sum(1, keepdim=True)
    to_h, to_e = torch.zeros_like(h), torch.empty_like(e)
    other = torch.empty_like(chunks.room)
    for s, part, cut in chunks:
        s.sub_(lse).exp_()
        wave = torch.mm(slope, c[cut].t(), out=other[:, : len(part)])
        s.mul_(wave.sub_(shift))
        to_h.addmm_(s, part)
        if e.dtype == h.dtype:
            torch.mm(s.t(), h, out=to_e[cut])
        else:
            to_e[cut] = s.t() @ h
    return mean.mean(0), to_h, to_e


def chunked_top(h: Tensor, e: Tensor, chunk: int) -> Tensor:
    """Each user's best items: the best of every chunk beside the best so far."""
    best = h.new_full((h.shape[0], TOP), -torch.inf)
    top = torch.zeros(h.shape[0], TOP, dtype=torch.int64, device=h.device)
    for start in range(0, e.shape[0], chunk):
        s = h @ e[start : start + chunk].to(h.dtype).t()
        values, places = s.topk(min(TOP, s.shape[1]), 1)
        best, order = torch.cat([best, values], 1).topk(TOP, 1)
        top = torch.cat([top, places + start], 1).gather(1, order)
    return top


def compare(name: str, got: Result, exact: Result, most: float) -> list[float]:
    """Relative errors of the three parts beside float64's; ends the run where one is large."""
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)]
    # A gradient in bfloat16 items is rounded to bfloat16: 1.7e-3 by that alone.
    allowed = [most, most, 3e-3 if got[2].dtype == torch.bfloat16 else most]
    if any(not error <= limit for error, limit in zip(errors, allowed, strict=True)):
        raise SystemExit(f"{name}: off from float64 by {errors}; nothing was timed")
    return errors


def peak_bytes(command: list[str]) -> int:
    """Peak memory of the work beyond inputs and outputs, in a process of its own."""
    found = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    return int(found.stdout.split()[-1])


def resident_peak() -> int:
    """The largest resident memory of this process since it was last forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def measure_peak(args: argparse.Namespace) -> None:
    """Print how far the resident memory rises above what lies there with room for the gradients."""
    dtype = getattr(torch, args.peak)
    h, e, c, weights = inputs(args.users, args.items, args.width, dtype)
    ours(h, e[:5000], c[:5000], weights)  # what is loaded at the first call
    held = [torch.ones_like(h), torch.ones_like(e)]  # as large as the outputs
    Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far
    before = resident_peak()
    del held
    ours(h, e, c, weights)
    # The kernel counts pages by the batch: a difference below a MB may come out negative.
    print(max(0, resident_peak() - before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=512)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="all logits as well, with autograd")
    parser.add_argument("--peak", choices=("float32", "bfloat16"), help=argparse.SUPPRESS)
    default = Path(__file__).parent / "results" / "catalogue.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        measure_peak(args)
        return
    sizes = [f"--{name}={getattr(args, name)}" for name in ("items", "users", "width", "threads")]
    rounds = [f"--repeats={args.repeats}", *(["--full"] if args.full else [])]
    clock = "cpu_s" if args.threads == 1 else "wall_s"
    logits = 4 * args.users * args.items
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/catalogue.py", *sizes, *rounds]),
        "machine": describe(),
        "clock": clock,
        "logits_bytes": logits,
        "expectation": {},
    }
    for name in ("float32", "bfloat16"):
        given = inputs(args.users, args.items, args.width, getattr(torch, name))
        work: dict[str, Callable[[], Any]] = {"ours": lambda g=given: ours(*g)}
        for chunk in CHUNKS:
            work[f"chunks of {chunk}"] = lambda g=given, c=chunk: chunked(*g, c)
        if args.full:
            work["all logits"] = lambda g=given: full(*g)
        exact = chunked(*(x.double() for x in given), CHUNKS[1])
        errors = {
            other: compare(other, run(), exact, OURS if other == "ours" else RIVALS)
            for other, run in work.items()
        }
        del exact
        h, e = given[:2]
        if not torch.equal(catalogue_top(h, e, TOP)[1], chunked_top(h, e, CHUNKS[1])):
            raise SystemExit("the highest items differ; nothing was timed")
        square = torch.ones(SIDE, SIDE)
        work["square product"] = lambda x=square: x @ x
        work["top ours"] = lambda h=h, e=e: catalogue_top(h, e, TOP)
        work[f"top chunks of {CHUNKS[1]}"] = lambda h=h, e=e: chunked_top(h, e, CHUNKS[1])
        found = interleaved(work, args.repeats)
        seconds = {other: float(times[clock]) for other, times in found.items()}  # type: ignore[arg-type]
        best = min((c for c in seconds if c.startswith("chunks")), key=seconds.__getitem__)
        rate = SIDE**3 / seconds["square product"]
        products = PRODUCTS * args.users * args.items * args.width / rate
        peak = peak_bytes([__file__, *sizes, f"--peak={name}"])
        result["expectation"][name] = {
            "seconds": seconds,
            "best_chunked": best,
            "times_chunked": seconds[best] / seconds["ours"],
            "multiply_adds_g_per_s": rate / 1e9,
            "products_seconds": products,
            "products_share": products / seconds["ours"],
            "products_times_chunked": seconds[best] / products,
            "times_top_chunked": seconds[f"top chunks of {CHUNKS[1]}"] / seconds["top ours"],
            "errors_beside_float64": errors,
            "peak_bytes": peak,
            "logits_over_peak": logits / max(peak, 1),
            "times": found,
        }
    part = result["expectation"]["float32"]
    result["bars"] = [
        {
            "bar": "chunked torch's time over ours, at least",
            "measured": part["times_chunked"],
            "threshold": 2,
            "met": part["times_chunked"] >= 2,
        },
        {
            "bar": "peak memory beyond inputs and outputs over the logits', at most",
            "measured": part["peak_bytes"] / logits,
            "threshold": 1 / 50,
            "met": part["peak_bytes"] / logits <= 1 / 50,
        },
    ]
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    for name, part in result["expectation"].items():
        print(name, json.dumps({k: v for k, v in part.items() if k != "times"}, indent=2))
    print(json.dumps(result["bars"], indent=2))


if __name__ == "__main__":
    main()
