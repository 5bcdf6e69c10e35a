"""Every op in plain PyTorch: the oracle of the tests, exact in float64, and never a fallback.

One module a family; arguments are those of the op's schema.
"""

from __future__ import annotations

from fudlr_ext.reference.catalogue import catalogue_mean, catalogue_share, catalogue_top
from fudlr_ext.reference.rows import row_dots, row_gram, row_sums
from fudlr_ext.reference.samples import grad_sum, sample_dots, sample_grads

__all__ = [
    "catalogue_mean",
    "catalogue_share",
    "catalogue_top",
    "grad_sum",
    "row_dots",
    "row_gram",
    "row_sums",
    "sample_dots",
    "sample_grads",
]
