"""One row an op: what feeds its agreement, registration, gradient, invariance and edge tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from fudlr_ext import reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


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


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of results, vectors and weights for inputs of `dtype`."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _factors(shape: Shape, dtype: torch.dtype, seed: int) -> tuple[list[Tensor], torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    total = sum(shape.lengths)
    left = torch.randn(total, shape.a, generator=generator, dtype=torch.float64).to(dtype)
    right = torch.randn(total, shape.b, generator=generator, dtype=torch.float64).to(dtype)
    offsets = torch.tensor([0, *accumulate(shape.lengths)])
    return [left, right, offsets], generator


def _grads(shape: Shape, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    return tuple(_factors(shape, dtype, seed)[0])


def _dots(shape: Shape, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    arguments, generator = _factors(shape, dtype, seed)
    vectors = torch.randn(shape.extra, shape.a, shape.b, generator=generator, dtype=torch.float64)
    return (*arguments, vectors.to(result_dtype(dtype)))


def _sum(shape: Shape, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    arguments, generator = _factors(shape, dtype, seed)
    weights = torch.randn(shape.extra, len(shape.lengths), generator=generator, dtype=torch.float64)
    return (*arguments, weights.to(result_dtype(dtype)))


@dataclass(frozen=True)
class OpCase:
    """One op of torch.ops.fudlr.

    Args:
        name: Its name.
        reference: The same in plain PyTorch, with the same arguments.
        make: Makes its arguments for a shape, a dtype and a seed.
        per_sample: Whether row i of the result belongs to sample i.
        differentiable: Which arguments it has a gradient in.
    """

    name: str
    reference: Callable[..., Tensor]
    make: Callable[..., tuple[Tensor, ...]]
    per_sample: bool
    differentiable: tuple[int, ...]

    @property
    def op(self) -> Callable[..., Tensor]:
        """The native op."""
        return getattr(torch.ops.fudlr, self.name).default

    def __str__(self) -> str:
        return self.name


OP_CASES = (
    OpCase("sample_grads", reference.sample_grads, _grads, True, (0, 1)),
    OpCase("sample_dots", reference.sample_dots, _dots, True, (0, 1, 3)),
    OpCase("grad_sum", reference.grad_sum, _sum, False, (0, 1, 3)),
)

# Sizes at which something changes in a kernel: tiles are 4 or 8 rows by 12, 24 or 48 columns, four
# samples are reduced together, and sums are cut into chunks of 128 positions.
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
