"""The native ops, one module a family; `OPS` is their table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fudlr_ext.ops import _decoder  # noqa: F401  registers its rules
from fudlr_ext.ops.catalogue import catalogue_mean, catalogue_share, catalogue_top
from fudlr_ext.ops.rows import row_dots, row_gram, row_sums
from fudlr_ext.ops.samples import grad_sum, sample_dots, sample_grads, sample_sketch

OPS: dict[str, Callable[..., Any]] = {
    "sample_grads": sample_grads,
    "sample_dots": sample_dots,
    "grad_sum": grad_sum,
    "row_dots": row_dots,
    "row_sums": row_sums,
    "row_gram": row_gram,
    "catalogue_mean": catalogue_mean,
    "catalogue_share": catalogue_share,
    "catalogue_top": catalogue_top,
}

__all__ = [
    "OPS",
    "catalogue_mean",
    "catalogue_share",
    "catalogue_top",
    "grad_sum",
    "row_dots",
    "row_gram",
    "row_sums",
    "sample_dots",
    "sample_grads",
    "sample_sketch",
]
