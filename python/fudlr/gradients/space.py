"""Where a request is solved: the adapter's own space, or the one its sketched rows span.

Sketches are s_i = S g_i. With orthonormal rows, S Sᵀ = 1, the method restricted to the span of Sᵀ:

    x = (S GᵀG Sᵀ / n + damping)⁻¹ S ∇F,   influence s_iᵀ x / n,   update Sᵀ x

and the lift Sᵀ of a shift is the shift. Every `Projection` has orthonormal rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fudlr.gradients.matrix import GradientMatrix
from fudlr.gradients.projection import Projection


@dataclass(frozen=True)
class Space:
    """Rows of gradients, and how vectors of the adapter get into their space and back.

    Attributes:
        rows: Of the samples at `index`, `[m, p]`.
        total: n, all training samples: the divisor of the loss.
        projection: S with orthonormal rows; None where rows are whole gradients.
        index: Which of the n samples the rows are, rising `[m]`; None where all.
        terms: Of how many terms each row's loss is the mean, `[m]`; one each where None.
    """

    rows: GradientMatrix
    total: int
    projection: Projection | None = None
    index: Tensor | None = None
    terms: Tensor | None = None

    def project(self, vectors: Tensor) -> Tensor:
        """S v, `[k, p]`, for vectors of the adapter `[k, d]`."""
        return vectors if self.projection is None else self.projection.project(vectors)

    def lift(self, sketches: Tensor) -> Tensor:
        """Sᵀ x, `[k, d]`, for `[k, p]`."""
        return sketches if self.projection is None else self.projection.lift(sketches)

    def spread(self, values: Tensor, fill: float) -> Tensor:
        """Values of the rows `[m, …]` as values of all samples `[n, …]`, `fill` for the others."""
        if self.index is None:
            return values
        out = values.new_full((self.total, *values.shape[1:]), fill)
        out[self.index] = values
        return out

    def of_rows(self, values: Tensor) -> Tensor:
        """Values of all samples `[n]` as values of the rows `[m]`."""
        return values if self.index is None else values[self.index]
