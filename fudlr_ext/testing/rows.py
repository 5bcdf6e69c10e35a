"""The ops on stored rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fudlr_ext import reference
from fudlr_ext.reference.rows import SCALE_BLOCK, decode
from fudlr_ext.testing.case import DTYPES, Arguments, OpCase, result_dtype


@dataclass(frozen=True)
class RowShape:
    """n rows of p numbers, k vectors or weightings."""

    n: int
    p: int
    k: int = 3

    def __str__(self) -> str:
        return f"n{self.n}-p{self.p}-k{self.k}"


def _rows(
    shape: RowShape, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    if dtype != torch.int8:
        rows = torch.randn(shape.n, shape.p, generator=generator, dtype=torch.float64)
        return rows.to(dtype), None
    codes = torch.randint(-127, 128, (shape.n, shape.p), generator=generator, dtype=torch.int8)
    blocks = -(-shape.p // SCALE_BLOCK)
    return codes, torch.rand(shape.n, blocks, generator=generator) / 64


def _make(shape: RowShape, dtype: torch.dtype, seed: int = 0, *, lines: str) -> Arguments:
    """Rows, then `lines`: V [k, p] or W [k, n], and for gram w [n] or None; then the scales."""
    generator = torch.Generator().manual_seed(seed)
    rows, scales = _rows(shape, dtype, generator)
    width = shape.n if lines == "weights" else shape.p
    third = torch.randn(shape.k, width, generator=generator, dtype=torch.float64)
    last: tuple[Tensor | None, ...] = ()
    if lines == "weighted":
        last = (torch.randn(shape.n, generator=generator, dtype=torch.float64),)
    if lines == "plain":
        last = (None,)
    kind = result_dtype(dtype)
    return rows, third.to(kind), *(None if x is None else x.to(kind) for x in last), scales


def _magnitude(op: Any, rows: Tensor, *rest: Tensor | None) -> Any:
    *lines, scales = rest
    exact = decode(rows, scales, torch.float64).abs()
    return op(exact, *(None if x is None else x.abs() for x in lines))


def _part(arguments: Arguments, start: int, stop: int) -> Arguments:
    rows, vectors, scales = arguments
    return rows[start:stop], vectors, None if scales is None else scales[start:stop]


# Registers hold 4, 8 or 16 numbers; steps take up to 6 rows and 4 lines, tiles 12 or 24 rows,
# chunks 240; scales change every 128 columns, and lanes are put away every 1,024.
SHAPES = (
    RowShape(0, 5),
    RowShape(3, 0),
    RowShape(3, 5, 0),
    RowShape(1, 1, 1),
    RowShape(2, 3, 1),
    RowShape(7, 8, 2),
    RowShape(5, 16, 4),
    RowShape(13, 31, 5),
    RowShape(25, 127, 6),
    RowShape(26, 128, 7),
    RowShape(11, 129, 8),
    RowShape(241, 144, 1),
    RowShape(479, 67, 9),
    RowShape(4, 1027, 3),
    RowShape(27, 2056, 2),
    RowShape(14, 16500, 4),
)
_case = partial(
    OpCase,
    shapes=SHAPES,
    small=(RowShape(5, 3, 2), RowShape(1, 9, 1), RowShape(3, 4, 5)),
    large=RowShape(1500, 300, 5),
    dtypes=(*DTYPES, torch.int8),
)


# Equal rows round in one direction, 240 times before the sum joins the total: measured 29 roundings
# in float64 on 1,500 equal rows, and below 3 on random ones.
SUMS = (1.5, 35.0)


def _gram_results(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    return result_dtype(dtype), torch.float64


CASES = (
    _case(
        "row_dots",
        reference.row_dots,
        partial(_make, lines="vectors"),
        (1,),
        part=_part,
        magnitude=partial(_magnitude, reference.row_dots),
    ),
    _case(
        "row_sums",
        reference.row_sums,
        partial(_make, lines="weights"),
        (1,),
        results=lambda dtype: (torch.float64,),
        magnitude=partial(_magnitude, reference.row_sums),
        rounding=SUMS,
    ),
    _case(
        "row_gram",
        reference.row_gram,
        partial(_make, lines="weighted"),
        (1, 2),
        variant="weighted",
        results=_gram_results,
        magnitude=partial(_magnitude, reference.row_gram),
        rounding=SUMS,
    ),
    _case(
        "row_gram",
        reference.row_gram,
        partial(_make, lines="plain"),
        (1,),
        variant="plain",
        results=_gram_results,
        magnitude=partial(_magnitude, reference.row_gram),
        rounding=SUMS,
    ),
)
