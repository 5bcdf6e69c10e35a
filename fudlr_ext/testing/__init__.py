"""One row an op: what feeds its agreement, registration, gradient, invariance and edge tests."""

from __future__ import annotations

from fudlr_ext.testing import catalogue, rows, samples
from fudlr_ext.testing.case import (
    DTYPES,
    Arguments,
    OpCase,
    as_tuple,
    check_agreement,
    is_float,
    on_floats,
    result_dtype,
)
from fudlr_ext.testing.samples import Shape

OP_CASES: tuple[OpCase, ...] = (
    *samples.CASES,
    *rows.CASES,
    *catalogue.CASES,
)

__all__ = [
    "DTYPES",
    "OP_CASES",
    "Arguments",
    "OpCase",
    "Shape",
    "as_tuple",
    "check_agreement",
    "is_float",
    "on_floats",
    "result_dtype",
]
