"""Projections of vectors in the order of `response.arrange`."""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.gradients.projection import Projection
from fudlr_ext.ops.unroll import lora_lift, lora_project


class ArrangedProjection:
    """S and Sᵀ of a `Projection` for vectors in the order of `response.arrange`.

    Args:
        projection: S.
        back: Where each number of a flat vector lies in that order, `[d]`.
        dtype: Of the vectors.
    """

    def __init__(self, projection: Projection, back: Tensor, dtype: torch.dtype) -> None:
        self._p, self._d = projection.dim, projection.d
        self._given = projection.table(dtype, back)

    def project(self, vectors: Tensor) -> Tensor:
        """S v, `[k, p]`, for `[k, d]`."""
        return lora_project(vectors, *self._given, self._p)

    def lift(self, sketches: Tensor) -> Tensor:
        """Sᵀ s, `[k, d]`, for `[k, p]`."""
        return lora_lift(sketches, *self._given, self._d)
