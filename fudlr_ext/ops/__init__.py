"""The native ops, one module each; `OPS` is their table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fudlr_ext.ops import _decoder  # noqa: F401  registers its rules
from fudlr_ext.ops.catalogue_mean import catalogue_mean
from fudlr_ext.ops.catalogue_share import catalogue_share
from fudlr_ext.ops.catalogue_top import catalogue_top
from fudlr_ext.ops.grad_sum import grad_sum
from fudlr_ext.ops.linear_cross_entropy import linear_cross_entropy
from fudlr_ext.ops.row_dots import row_dots
from fudlr_ext.ops.row_gram import row_gram
from fudlr_ext.ops.row_sums import row_sums
from fudlr_ext.ops.sample_dots import sample_dots
from fudlr_ext.ops.sample_grads import sample_grads
from fudlr_ext.ops.sample_sketch import sample_sketch

OPS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        sample_grads,
        sample_dots,
        grad_sum,
        sample_sketch,
        row_dots,
        row_sums,
        row_gram,
        catalogue_mean,
        catalogue_share,
        catalogue_top,
        linear_cross_entropy,
    )
}

__all__ = [
    "OPS",
    "catalogue_mean",
    "catalogue_share",
    "catalogue_top",
    "grad_sum",
    "linear_cross_entropy",
    "row_dots",
    "row_gram",
    "row_sums",
    "sample_dots",
    "sample_grads",
    "sample_sketch",
]
