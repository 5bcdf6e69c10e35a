"""What each sample did to the trained adapter, as if it were a row of gradients.

Row i is n ∂θ*/∂m_i, through the whole training. With H⁻¹ = 1 every formula of the closed form then
speaks of the training instead of its optimum: influence (1/n) rows · ∇F, update (1/n) Σ m_i row_i.
The rows are never made: products with them go through the steps, forwards or backwards.
"""

from __future__ import annotations

from torch import Tensor

from fudlr.gradients.matrix import GradientMatrix
from fudlr.influence.unroll.unrolled import Unrolled


class UnrolledRows(GradientMatrix):
    """The rows of an `Unrolled` training as a `GradientMatrix`: a product with vectors is one pass
    from the last step back, a sum one pass over the steps."""

    def __init__(self, unrolled: Unrolled) -> None:
        self._unrolled, self.n, self.d = unrolled, unrolled.n, unrolled.d

    def _dots(self, vectors: Tensor) -> Tensor:
        return self.n * self._unrolled.influence(vectors)

    def _sum(self, weights: Tensor) -> Tensor:
        return self.n * self._unrolled.tangent(weights)
