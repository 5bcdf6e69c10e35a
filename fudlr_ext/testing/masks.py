"""The ops on a mask over samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fudlr_ext import reference
from fudlr_ext.testing.case import Arguments, OpCase, result_dtype

SHIFT, PRICE = 0.37, -0.23
STEP, RATE, DECAYS, EPS = 3, 0.7, (0.8, 0.95), 1e-3
LIMIT = 2.5  # so that some logits meet it


@dataclass(frozen=True)
class MaskShape:
    """n samples, k metrics."""

    n: int
    k: int

    def __str__(self) -> str:
        return f"n{self.n}-k{self.k}"


def _make(shape: MaskShape, dtype: torch.dtype, seed: int = 0, *, step: bool) -> Arguments:
    generator = torch.Generator().manual_seed(seed)
    kind = result_dtype(dtype)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    influence = random(shape.n, shape.k).to(dtype)
    logits = (2 * random(shape.n)).to(kind)
    if not step:
        return influence, logits, SHIFT
    state = (logits, random(shape.n).to(kind), random(shape.n).square().to(kind))
    adam = (RATE, *DECAYS, EPS, LIMIT)
    return influence, random(shape.k).to(kind), *state, STEP, PRICE, SHIFT, *adam


def _sizes(influence: Tensor, z: Tensor, terms: Tensor) -> Tensor:
    """Of the sums at z, whose own terms have these sizes: their rounding moves ln m and ln d."""
    mask, slope, s = z.sigmoid(), z.sigmoid() * (-z).sigmoid(), influence.abs()
    mask, slope, square = (x * (1 + 2 * terms) for x in (mask, slope, slope.square()))
    single = torch.stack([mask.sum(), slope.sum(), square.sum()])
    return torch.cat([single, mask @ s, square @ s])


def _sums_sizes(influence: Tensor, logits: Tensor, shift: float) -> Tensor:
    return _sizes(influence, logits - shift, logits.abs() + abs(shift))


def _step_sizes(
    influence: Tensor, weights: Tensor, logits: Tensor, first: Tensor, second: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """Of the gradient's terms and of the moments', before they cancel."""
    step, price, shift, rate, keep_first, keep_second, eps, _ = rest
    found = reference.mask_step(influence, weights, logits, first, second, *rest)
    z = logits - shift
    slope = z.sigmoid() * (-z).sigmoid() * (1 + logits.abs() + abs(shift))
    gradient = slope * (influence.abs() @ weights.abs() + abs(price))
    means = keep_first * first.abs() + (1 - keep_first) * gradient
    squares = keep_second * second + (1 - keep_second) * gradient.square()
    size = (found[3] / (1 - keep_second**step)).sqrt() + eps
    relative = 1 + squares / found[3].clamp_min(1e-30)
    moved = rate * means / (1 - keep_first**step) / size * relative
    steps = logits.abs() + abs(shift) + moved
    return _sizes(influence, found[1], steps), steps, means, squares


# Vectors hold 4, 8 or 16 numbers, blocks 256 samples, chunks 4,096; one to four metrics have
# code of their own, and four share a reading.
SHAPES = (
    MaskShape(0, 3),
    MaskShape(5, 0),
    MaskShape(1, 1),
    MaskShape(7, 2),
    MaskShape(8, 3),
    MaskShape(17, 4),
    MaskShape(255, 5),
    MaskShape(256, 8),
    MaskShape(257, 1),
    MaskShape(515, 9),
    MaskShape(4097, 4),
)
_case = partial(
    OpCase,
    differentiable=(),
    shapes=SHAPES,
    small=(MaskShape(5, 2),),
    large=MaskShape(20_011, 4),
    # Equal rows round in one direction over a block: measured 5.8 roundings in float64.
    rounding=(1.5, 9.0),
)
CASES = (
    _case(
        "mask_sums",
        reference.mask_sums,
        partial(_make, step=False),
        results=lambda dtype: (torch.float64,),
        magnitude=_sums_sizes,
    ),
    _case(
        "mask_step",
        reference.mask_step,
        partial(_make, step=True),
        updates=(2, 3, 4),
        results=lambda dtype: (torch.float64, *(result_dtype(dtype),) * 3),
        magnitude=_step_sizes,
    ),
)
