"""A head's cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fudlr_ext import reference
from fudlr_ext.reference.cross_entropy import IGNORED
from fudlr_ext.testing.case import Arguments, OpCase, result_dtype


@dataclass(frozen=True)
class HeadShape:
    """m rows of d numbers, V words."""

    m: int
    v: int
    d: int

    def __str__(self) -> str:
        return f"m{self.m}-v{self.v}-d{self.d}"


def _make(shape: HeadShape, dtype: torch.dtype, seed: int = 0) -> Arguments:
    """Every third target is left out, but the first."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(shape.m, shape.d, generator=generator, dtype=torch.float64)
    weight = torch.randn(shape.v, shape.d, generator=generator, dtype=torch.float64)
    targets = torch.randint(shape.v, (shape.m,), generator=generator)
    targets[2::3] = IGNORED
    return hidden.to(result_dtype(dtype)), weight.to(dtype), targets


def _part(arguments: Arguments, start: int, stop: int) -> Arguments:
    hidden, weight, targets = arguments
    return hidden[start:stop], weight, targets[start:stop]


def _sizes(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Any, ...]:
    """A logit's rounding is eps times the sizes of its terms."""
    largest = (hidden.abs() @ weight.abs().t()).amax(1)
    _, lse = reference.linear_cross_entropy(hidden, weight, targets)
    return 2 * largest + lse.abs(), largest + lse.abs()


# Tiles hold 240 words and 128 rows, chunks 960 words; registers 4, 8 or 16 numbers.
SHAPES = (
    HeadShape(0, 5, 4),
    HeadShape(1, 1, 1),
    HeadShape(3, 7, 0),
    HeadShape(5, 239, 15),
    HeadShape(129, 241, 17),
    HeadShape(4, 1999, 130),
)
CASES = (
    OpCase(
        "linear_cross_entropy",
        reference.linear_cross_entropy,
        _make,
        differentiable=(0, 1),
        shapes=SHAPES,
        small=(HeadShape(4, 5, 2), HeadShape(1, 4, 3)),
        large=HeadShape(131, 2000, 20),
        part=_part,
        twice=False,
        results=lambda dtype: (result_dtype(dtype),) * 2,
        magnitude=_sizes,
    ),
)
