"""What a row of `OP_CASES` says of an op, and how far a result may be from the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Arguments = tuple[Any, ...]
"""Tensors, numbers and None, in the order of the op's schema."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of results for inputs of `dtype`: float32 for the narrower ones."""
    return dtype if dtype == torch.float64 else torch.float32


def is_float(argument: object) -> bool:
    """Whether an argument is a tensor of floating-point numbers."""
    return isinstance(argument, Tensor) and argument.is_floating_point()


def on_floats(arguments: Arguments, change: Callable[[Tensor], Tensor]) -> Arguments:
    """Return the arguments, each floating-point tensor changed."""
    return tuple(change(x) if is_float(x) else x for x in arguments)


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    """Return what an op returned as a tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


@dataclass(frozen=True)
class OpCase:
    """One op of torch.ops.fudlr, or one way of calling it.

    Args:
        name: Its name.
        reference: The same in plain PyTorch, with the same arguments.
        make: Makes its arguments for a shape, a dtype and a seed.
        differentiable: Which arguments it has a gradient in.
        shapes: Sizes at which something changes in its kernels, edges among them.
        small: For second derivatives, by finite differences.
        large: One that is shared between threads.
        part: Makes, out of its arguments, those for the samples from start to stop, where row i
            of every result belongs to sample i; else None.
        dtypes: What it takes.
        twice: Whether its gradients have gradients.
        variant: Tells ways of calling one op apart.
        packed: Whether its arguments begin with left and right, and end with offsets.
        results: The dtypes of its results for inputs of a dtype; by default one, `result_dtype`.
        magnitude: The sums of the terms' sizes, shaped as the results, of which eps is a rounding;
            by default `reference` of the arguments' absolute values.
        rounding: Roundings of that size that its error may exceed plain PyTorch's twofold by, in
            float32 and in float64; measured.
    """

    name: str
    reference: Callable[..., Any]
    make: Callable[..., Arguments]
    differentiable: tuple[int, ...]
    shapes: tuple[Any, ...]
    small: tuple[Any, ...]
    large: Any
    part: Callable[[Arguments, int, int], Arguments] | None = None
    dtypes: tuple[torch.dtype, ...] = DTYPES
    variant: str = ""
    twice: bool = True
    packed: bool = False
    results: Callable[[torch.dtype], tuple[torch.dtype, ...]] = lambda dtype: (result_dtype(dtype),)
    magnitude: Callable[..., Any] | None = None
    rounding: tuple[float, float] = (1.5, 3.0)

    @property
    def op(self) -> Callable[..., Any]:
        """The native op."""
        return getattr(torch.ops.fudlr, self.name).default

    def sizes(self, arguments: Arguments) -> tuple[Tensor, ...]:
        """Return the sums of the sizes of the terms of every result, in float64."""
        exact = on_floats(arguments, lambda x: x.double())
        if self.magnitude is not None:
            return as_tuple(self.magnitude(*exact))
        return as_tuple(self.reference(*on_floats(exact, torch.abs)))

    def __str__(self) -> str:
        return f"{self.name}-{self.variant}" if self.variant else self.name


def check_agreement(got: Any, case: OpCase, arguments: Arguments) -> None:
    """Hold an error to twice that of plain PyTorch in the accumulator's dtype, plus rounding.

    A rounding is eps times the sum of the terms' sizes. Measured on the sample ops over five seeds:
    at most 0.94 beyond twice plain PyTorch's error in the narrower dtypes, and 2.0 in float64,
    where the reference rounds as much as the kernel does.

    Raises:
        AssertionError: A dtype or a shape that is not the op's, or an error beyond that.
    """
    exact = as_tuple(case.reference(*on_floats(arguments, torch.Tensor.double)))
    dtype = result_dtype(arguments[0].dtype)
    plain = as_tuple(case.reference(*on_floats(arguments, lambda x: x.to(dtype))))
    wanted = case.results(arguments[0].dtype)
    sizes = case.sizes(arguments)
    assert len(as_tuple(got)) == len(exact) == len(wanted)
    for result, truth, rough, size, kind in zip(
        as_tuple(got), exact, plain, sizes, wanted, strict=True
    ):
        assert result.dtype == kind
        assert result.shape == truth.shape
        if not truth.numel():
            continue
        if not truth.is_floating_point():
            assert torch.equal(result, truth)
            continue
        error = (result.double() - truth).abs().max()
        rounding = torch.finfo(dtype).eps * size.max()
        roundings = case.rounding[dtype == torch.float64]
        assert error <= 2 * (rough.double() - truth).abs().max() + roundings * rounding
