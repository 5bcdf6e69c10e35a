"""A step of Adam on a mask over samples, and the mask's sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from mask_step import KINDS, way_of
from torch import Tensor

from fudlr_ext import ops
from gpu_cases.case import TRUTH, Case, Ways, Work, normal, ways

NAMES = {"ours": "ours", "torch in place": "plain", "torch.optim.Adam": "torch.optim.Adam"}


class Mask(NamedTuple):
    """n samples, k metrics."""

    name: str
    samples: int
    metrics: int = 4


# A step includes the gradient of an objective of k numbers, a dozen small launches: a third of the
# time at the smaller size, and next to nothing at the larger one.
SIZES = (Mask("10⁷ samples", 10_000_000), Mask("10⁸ samples", 100_000_000))


def small(size: Mask) -> Mask:
    return size._replace(samples=size.samples // 1_000_000)


def work(op: str, size: Mask, itemsize: int) -> Work:
    n, k = size.samples, size.metrics
    if op == "mask_step":
        return Work(
            n * (k * itemsize + 24), n * (4 * k + 40),
            "n (k s + 24) bytes, n (4 k + 40) operations",
        )  # fmt: skip
    return Work(
        n * (k * itemsize + 4), n * (4 * k + 20), "n (k s + 4) bytes, n (4 k + 20) operations"
    )


def weighted(weights: Tensor, influence: Tensor) -> Tensor:
    """Σ w s, by torch's sum, which adds pieces: a product with a matrix may add one after the
    other, and in float32 be percents off at 10⁷ samples."""
    return (weights[:, None] * influence).sum(0)


def plain_sums(
    influence: Tensor, logits: Tensor, add: Callable[[Tensor, Tensor], Tensor] = weighted
) -> tuple[Tensor, ...]:
    """What mask_sums returns, with torch's operations."""
    mask = logits.sigmoid()
    slope = mask * (1 - mask)
    square = slope.square()
    numbers = influence.to(mask.dtype)
    return mask.sum(), slope.sum(), square.sum(), add(mask, numbers), add(square, numbers)


def build(op: str, size: Mask, dtype: torch.dtype, device: str) -> Ways:
    random = normal(device)
    influence = random(size.samples, size.metrics).mul_(10 / size.samples).to(dtype)
    if op == "mask_step":
        timed = {NAMES[name]: kind(influence).step for name, kind in KINDS.items()}
        checked = {NAMES[name]: partial(way_of, kind, influence) for name, kind in KINDS.items()}
        exact = KINDS["torch in place"]
        return ways(timed, {TRUTH: lambda: way_of(exact, influence.double()), **checked})
    # Influences of one sign: sums of both are what rounding leaves.
    influence.abs_()
    logits = random(size.samples) - 3
    return ways(
        {
            "ours": lambda: ops.mask_sums(influence, logits),
            "plain": lambda: plain_sums(influence, logits),
            "matrix products": lambda: plain_sums(influence, logits, torch.matmul),
        },
        {TRUTH: lambda: plain_sums(influence, logits.double())},
    )


def cases(size: Mask) -> Iterator[Case]:
    for op in ("mask_step", "mask_sums"):
        for dtype in (torch.float32, torch.bfloat16):
            build_mask = partial(build, op, size, dtype)
            yield Case(op, size, dtype, build_mask, work(op, size, dtype.itemsize))
