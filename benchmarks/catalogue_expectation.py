"""Expectations over 10⁶ items for 512 users, with gradients, beside the fastest chunked torch.

    python benchmarks/catalogue_expectation.py --run RUN
    python benchmarks/catalogue_expectation.py --isa avx2 --gradients users --add

The mean over users of p C for four value columns, p = softmax(h Eᵀ), and its gradients: in h, which
metrics ask for, and in h and E. Rivals are torch in chunks of items, an online softmax forward and
probabilities formed again backward, for several sizes of chunks, and by torch.compile where
the instruction set is the machine's own. Answers are compared with float64's before anything is
timed. Every instruction set has a process of its own, torch's kernels held to the same set. Times
are CPU seconds of one thread, medians of rounds in turn.

With --run, a folder that `fudlr train` made of item tokens: how much of a trained catalogue could
be left out. Of the test prompts' softmax, the share of items, and of tiles of 16 items (sorted by
mean probability), whose mass together is below a tolerance: of one prompt, of 128 prompts at a time
(a tile's largest mass counts), and as far as a bound proves it without scores, by the tile's
centroid c and radius r: Σ exp(s) ≤ 16 exp(h · c + |h| r).

Writes benchmarks/results/catalogue_expectation.json.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, bar, describe, write_result
from fudlr import load_run
from fudlr.common.factors import Factors
from fudlr.common.files import read_json
from processes import in_own_process
from torch import Tensor

from fudlr_ext.ops import catalogue_mean

USERS, COLUMNS, TILE, BLOCK = 512, 4, 16, 128
CHUNKS = (500, 1_000)
ERROR, RIVALS = 1e-5, 1e-4
"""The largest relative error beside float64; torch adds a chunk's items in float32 one by one."""
ASKED = 2.5
SETS = {
    "avx512": {},
    "avx2": {
        "FUDLR_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}
GRADIENTS = ("users", "both")
TOLERANCES = (1e-2, 1e-3, 1e-6)
Step = Callable[..., tuple[Tensor, ...]]


def inputs(items: int, width: int) -> tuple[Tensor, ...]:
    """h, E, C, and the weights of the columns."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(USERS, width, generator=generator)
    e = torch.randn(items, width, generator=generator) * width**-0.5
    # Values that depend on the items: with others, the gradient in h would be rounding error alone.
    values = (4 * e @ torch.randn(width, COLUMNS, generator=generator)).sigmoid()
    return h, e, values, torch.arange(1.0, COLUMNS + 1)


def ours(h: Tensor, e: Tensor, c: Tensor, weights: Tensor, of_items: bool) -> list[Tensor]:
    """The mean and its gradients in h, and in E where asked."""
    leaves = [h.detach().requires_grad_(), *([e.detach().requires_grad_()] if of_items else [])]
    mean = catalogue_mean(leaves[0], leaves[1] if of_items else e, c)[0].mean(0)
    return [mean.detach(), *torch.autograd.grad(mean @ weights, leaves)]


def forward(h: Tensor, e: Tensor, c: Tensor, most: Tensor, room: Tensor) -> tuple[Tensor, ...]:
    """One chunk: the largest score so far, Σ exp and Σ exp C relative to it."""
    s = torch.mm(h, e.t(), out=room[:, : len(e)])
    above = torch.maximum(most, s.amax(1, keepdim=True))
    p = s.sub_(above).exp_()
    return above, p.sum(1, keepdim=True), p @ c


def backward(
    h: Tensor, e: Tensor, c: Tensor, of: tuple[Tensor, ...], rooms: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """One chunk's ∂s, and its part of the gradient in h."""
    lse, slope, shift = of
    p = torch.mm(h, e.t(), out=rooms[0][:, : len(e)]).sub_(lse).exp_()
    d = p.mul_(torch.mm(slope, c.t(), out=rooms[1][:, : len(e)]).sub_(shift))
    return d, d @ e


def forward_compiled(
    h: Tensor, e: Tensor, c: Tensor, most: Tensor, _: Tensor
) -> tuple[Tensor, ...]:
    """`forward`, as its compiler wants it."""
    s = h @ e.t()
    above = torch.maximum(most, s.amax(1, keepdim=True))
    p = (s - above).exp()
    return above, p.sum(1, keepdim=True), p @ c


def backward_compiled(
    h: Tensor, e: Tensor, c: Tensor, of: tuple[Tensor, ...], _: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """`backward`, as its compiler wants it."""
    lse, slope, shift = of
    d = (h @ e.t() - lse).exp() * (slope @ c.t() - shift)
    return d, d @ e


@torch.no_grad()
def chunked(
    given: tuple[Tensor, ...], of_items: bool, size: int, steps: tuple[Step, Step]
) -> list[Tensor]:
    """The same in torch, a chunk of items at a time."""
    h, e, c, weights = given
    rooms = [h.new_empty(len(h), min(size, len(e))) for _ in range(2)]
    most = h.new_full((len(h), 1), -math.inf)
    sums, totals = h.new_zeros(len(h), 1), h.new_zeros(len(h), COLUMNS)
    for start in range(0, len(e), size):
        cut = slice(start, start + size)
        above, more, columns = steps[0](h, e[cut], c[cut], most, rooms[0])
        shrink = (most - above).exp_()
        most = above
        sums.mul_(shrink).add_(more)
        totals.mul_(shrink).add_(columns)
    mean, lse = totals / sums, most + sums.log()
    slope = (weights / len(h)).expand(len(h), -1).contiguous()
    shift = (slope * mean).sum(1, keepdim=True)
    found = [mean.mean(0), torch.zeros_like(h), *([torch.empty_like(e)] if of_items else [])]
    for start in range(0, len(e), size):
        cut = slice(start, start + size)
        d, part = steps[1](h, e[cut], c[cut], (lse, slope, shift), rooms)
        found[1].add_(part)
        if of_items:
            torch.mm(d.t(), h, out=found[2][cut])
    return found


def differences(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Relative, of the mean and of each gradient."""
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


def measured(items: int, width: int, of_items: bool, repeats: int) -> dict[str, Any]:
    """One instruction set, width and form: errors, and the times of all."""
    torch.set_num_threads(1)
    given = inputs(items, width)
    plain = forward, backward
    compiled = torch.compile(forward_compiled), torch.compile(backward_compiled)
    work = {"ours": lambda: ours(*given, of_items)}
    for size in CHUNKS:
        work[f"chunks of {size}"] = lambda n=size: chunked(given, of_items, n, plain)
    if "FUDLR_ISA" not in os.environ:
        # Not held to a narrower set: the compiler's cache does not tell sets apart, and kernels of
        # the wider one then give wrong numbers.
        name = f"chunks of {CHUNKS[1]}, compiled"
        work[name] = lambda: chunked(given, of_items, CHUNKS[1], compiled)
    exact = chunked(tuple(x.double() for x in given), of_items, CHUNKS[1], plain)
    errors = {name: differences(run(), exact) for name, run in work.items()}
    for name, each in errors.items():
        if not max(each) <= (ERROR if name == "ours" else RIVALS):
            raise SystemExit(f"{name} is off from float64 by {each}; nothing was timed")
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, run in work.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    seconds = {name: statistics.median(each) for name, each in times.items()}
    best = min((name for name in seconds if name != "ours"), key=seconds.__getitem__)
    ratios = sorted(a / b for a, b in zip(times[best], times["ours"], strict=True))
    return {
        "isa": describe()["isa"],
        "width": width,
        "gradients": "both" if of_items else "users",
        "seconds": seconds,
        "fastest_torch": best,
        "times_torch": statistics.median(ratios),
        "range": [ratios[0], ratios[-1]],
        "errors_beside_float64": errors,
        "products_g_per_s": (4 if of_items else 3) * USERS * items * width / seconds["ours"] / 1e9,
    }


def left_out(folder: Path) -> dict[str, Any]:
    """What of a trained catalogue is below a tolerance, exactly and provably."""
    run = load_run(folder)
    run.recommender.ready(scoring=True)
    run.recommender._factored = True  # type: ignore[attr-defined]
    scores, _ = run.recommender.evaluate(run.test.samples, 256)
    assert isinstance(scores, Factors)
    h, e = scores.users.double(), scores.items.double()
    s = h @ e.T
    lse = s.logsumexp(1, keepdim=True)
    p = (s - lse).exp()
    tiles = p.mean(0).argsort(descending=True).split(TILE)
    mass = torch.stack([p[:, tile].sum(1) for tile in tiles], 1)
    blocks = torch.stack([each.amax(0) for each in mass.split(BLOCK)])
    bounds = []
    for tile in tiles:
        centre = e[tile].mean(0)
        radius = (e[tile] - centre).norm(dim=1).max()
        bounds.append(math.log(len(tile)) + h @ centre + h.norm(dim=1) * radius)
    bound = (torch.stack(bounds, 1) - lse).exp()

    def share(parts: Tensor, tolerance: float) -> float:
        return float((parts.sort(1).values.cumsum(1) <= tolerance).double().mean())

    entropy = -(p * (s - lse)).sum(1)
    return {
        "prompts": len(h),
        "items": len(e),
        "width": h.shape[1],
        "median_perplexity": float(entropy.exp().median()),
        "shares": [
            {
                "tolerance": each,
                "items": share(p, each),
                "tiles": share(mass, each),
                "tiles_of_128_prompts": share(blocks, each),
                "tiles_by_the_bound": share(bound, each),
            }
            for each in TOLERANCES
        ],
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=10**6)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--isa", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--gradients", nargs="+", choices=GRADIENTS, default=list(GRADIENTS))
    parser.add_argument("--run", type=Path, help="a trained run of item tokens")
    parser.add_argument("--add", action="store_true", help="keep what else is in the file")
    parser.add_argument("--out", type=Path, default=RESULTS / "catalogue_expectation.json")
    args = parser.parse_args()
    kept = read_json(args.out, dict[str, Any]) if args.add else {"rows": [], "left_out": None}
    rows = {(each["isa"], each["gradients"]): each for each in kept["rows"]}
    for isa, gradients in itertools.product(args.isa, args.gradients):
        os.environ.update(SETS[isa])
        given = args.items, args.width, gradients == "both", args.repeats
        rows[isa, gradients] = in_own_process(measured, *given)
        print(isa, gradients, rows[isa, gradients]["times_torch"], flush=True)
    found = [rows[key] for key in itertools.product(SETS, GRADIENTS) if key in rows]
    write_result(
        args.out,
        f"python benchmarks/catalogue_expectation.py --items {args.items} --width {args.width} "
        f"--repeats {args.repeats} --run RUN",
        users=USERS,
        items=args.items,
        rows=found,
        left_out=left_out(args.run) if args.run else kept["left_out"],
        bars=[
            bar(
                f"times the fastest chunked torch, {each['isa']}, gradients: {each['gradients']}",
                each["times_torch"],
                ASKED,
            )
            for each in found
        ],
    )


if __name__ == "__main__":
    main()
