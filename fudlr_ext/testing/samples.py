"""The ops on per-sample gradients of a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from fudlr_ext import reference
from fudlr_ext.testing.case import Arguments, OpCase, result_dtype


@dataclass(frozen=True)
class Shape:
    """The sizes of one case: samples of these lengths, matrices [a, b], `extra` vectors."""

    lengths: tuple[int, ...]
    a: int
    b: int
    extra: int = 3

    def __str__(self) -> str:
        longest = max(self.lengths, default=0)
        return f"n{len(self.lengths)}-t{longest}-a{self.a}-b{self.b}-k{self.extra}"


class _Random:
    """Normal numbers of one seed, drawn in float64 so that every dtype has the same ones."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*size, generator=self._generator, dtype=torch.float64).to(dtype)


def _arguments(
    shape: Shape,
    dtype: torch.dtype,
    seed: int,
    *sizes: tuple[int, int] | tuple[int, int, int] | None,
) -> Arguments:
    """Both factors, further tensors of these sizes in the result's dtype, and the offsets."""
    random, total = _Random(seed), sum(shape.lengths)
    left = random(total, shape.a, dtype=dtype)
    right = random(total, shape.b, dtype=dtype)
    kind = result_dtype(dtype)
    more = (None if size is None else random(*size, dtype=kind) for size in sizes)
    return left, right, *more, torch.tensor([0, *accumulate(shape.lengths)])


def _grads(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Arguments:
    return _arguments(shape, dtype, seed)


def _dots(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Arguments:
    return _arguments(shape, dtype, seed, (shape.extra, shape.a, shape.b))


def _sum(shape: Shape, dtype: torch.dtype, seed: int = 0) -> Arguments:
    return _arguments(shape, dtype, seed, (shape.extra, len(shape.lengths)))


def _part(arguments: Arguments, start: int, stop: int) -> Arguments:
    *rest, offsets = arguments
    return *rest, offsets[start : stop + 1]


# Tiles are 4 or 8 rows by 12, 24 or 48 columns, four samples are reduced together, and sums are cut
# into chunks of 128 positions.
SHAPES = (
    Shape((), 4, 8),
    Shape((0,), 4, 8),
    Shape((0, 0, 0), 4, 8),
    Shape((1,), 1, 1, 1),
    Shape((5,), 8, 64),
    Shape((3, 0, 1, 20, 7, 5, 9), 8, 64),
    Shape((3, 0, 1, 20, 7, 5, 9), 64, 8),
    Shape((2, 6), 1, 31),
    Shape((2, 6), 31, 1),
    Shape((1, 1, 1, 1, 1), 3, 25, 1),
    Shape((4, 2, 3, 9), 5, 11, 2),
    Shape((4, 2, 3, 9), 4, 12, 5),
    Shape((4, 2, 3, 9), 3, 13, 9),
    Shape((4, 2, 3), 9, 23),
    Shape((4, 2, 3), 7, 24),
    Shape((4, 2, 3), 8, 47),
    Shape((4, 2, 3), 8, 48),
    Shape((4, 2, 3), 49, 8),
    Shape((127, 2), 2, 9),
    Shape((300, 129), 6, 17, 10),
    Shape((3, 2), 256, 40),
    Shape((3, 2), 40, 256),
    Shape((2,), 256, 257, 1),
)
SMALL = (Shape((2, 0, 1, 3), 3, 5, 2), Shape((2,), 1, 3), Shape((1, 2), 4, 2, 1))
LARGE = Shape(tuple(range(13, 60)), 8, 200, 5)

_case = partial(OpCase, shapes=SHAPES, small=SMALL, large=LARGE, packed=True)
CASES = (
    _case("sample_grads", reference.sample_grads, _grads, (0, 1), part=_part),
    _case("sample_dots", reference.sample_dots, _dots, (0, 1, 2), part=_part),
    _case("grad_sum", reference.grad_sum, _sum, (0, 1, 2)),
)
