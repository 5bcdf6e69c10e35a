"""A head's cross-entropy over a vocabulary, with gradients."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fudlr_ext.ops import linear_cross_entropy
from gpu_cases.case import HALVES, TRUTH, Case, Way, Ways, Work, normal, ways


class Head(NamedTuple):
    """n rows of a hidden size d, a vocabulary of V words."""

    name: str
    words: int
    hidden: int
    rows: int = 1_024


SIZES = (
    Head("128,256 words × 2,048", 128_256, 2_048),
    Head("128,256 words × 4,096", 128_256, 4_096),
    Head("32,000 words × 2,048", 32_000, 2_048),
    Head("32,000 words × 4,096", 32_000, 4_096),
)

LOGITS = 2**24
"""Of a block of rows."""


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


def small(size: Head) -> Head:
    return size._replace(words=size.words // 2_000, hidden=size.hidden // 256, rows=5)


# What is asked for besides the losses, and the products of 2 n V d operations that this takes:
# with gradients the scores are made twice, since they are not kept.
ASKED = {"": 1, " and hidden's gradient": 3, " and both gradients": 4}


def work(asked: str, size: Head, itemsize: int) -> Work:
    n, v, d = size.rows, size.words, size.hidden
    weight, hidden = v * d * itemsize, 4 * n * d
    times = {"": 1, " and hidden's gradient": 2, " and both gradients": 2}[asked]
    written = {"": 0, " and hidden's gradient": hidden, " and both gradients": hidden + weight}
    made = {"": "", " and hidden's gradient": " + 4 n d", " and both gradients": " + V d s + 4 n d"}
    return Work(
        times * (weight + hidden) + 12 * n + written[asked],
        ASKED[asked] * 2 * n * v * d,
        f"{times} (V d s + 4 n d) + 12 n{made[asked]} bytes, {2 * ASKED[asked]} n V d operations",
    )


def on_narrow_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """As models in 16 bits do it: logits as narrow as the weight."""
    logits = (hidden.to(weight.dtype) @ weight.t()).float()
    return F.cross_entropy(logits, targets, reduction="none")


def build(asked: str, size: Head, dtype: torch.dtype, device: str) -> Ways:
    random = normal(device)
    hidden = random(size.rows, size.hidden)
    weight = random(size.words, size.hidden).mul_(size.hidden**-0.5).to(dtype)
    targets = torch.arange(size.rows, device=device) * 37 % size.words
    found = {"ours": linear_cross_entropy, "plain": on_all_logits, "blocks of rows": on_blocks}
    if dtype in HALVES:
        found["logits as the weight"] = on_narrow_logits

    def way(loss: Way, weight: Tensor = weight) -> Way:
        given = (hidden, weight, targets)
        if asked:
            return lambda: with_gradients(loss, given, asked.endswith("both gradients"))
        return lambda: loss(*given)

    # Its gradient in the weight is rounded to no 16 bits.
    checked = {TRUTH: way(on_all_logits, weight.float())}
    return ways({name: way(loss) for name, loss in found.items()}, checked)


def cases(size: Head) -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for asked in ASKED:
            rounded = dtype in HALVES and asked.endswith("both gradients")
            yield Case(
                f"linear_cross_entropy{asked}", size, dtype, partial(build, asked, size, dtype),
                work(asked, size, dtype.itemsize), 3e-3 if rounded else 1e-4,
            )  # fmt: skip
