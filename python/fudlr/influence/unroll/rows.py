"""What each sample did to the trained adapter, as if it were a row of gradients.

Row i is n ∂θ*/∂m_i, through the whole training. With H⁻¹ = 1 every formula of the closed form then
speaks of the training instead of its optimum: influence (1/n) rows · ∇F, update (1/n) Σ m_i row_i.
The rows are never made: products with them go through the steps, forwards or backwards.
"""

from __future__ import annotations

from torch import Tensor

from fudlr.gradients.matrix import check_columns
from fudlr.influence.unroll.unrolled import Unrolled


class UnrolledRows:
    """The rows of an `Unrolled` training as a `GradientMatrix`."""

    def __init__(self, unrolled: Unrolled) -> None:
        self._unrolled = unrolled

    @property
    def n(self) -> int:
        """Number of samples."""
        return self._unrolled.n

    @property
    def d(self) -> int:
        """Number of parameters."""
        return self._unrolled.d

    def dots(self, vectors: Tensor) -> Tensor:
        """G Vᵀ, `[n, k]`, for `vectors` V `[k, d]`; one pass from the last step back."""
        check_columns(vectors, self.d, "vectors", "d")
        return self.n * self._unrolled.influence(vectors)

    def sum(self, weights: Tensor) -> Tensor:
        """Σ_i w_i g_i, `[w, d]`, for `weights` `[w, n]`; one pass over the steps."""
        check_columns(weights, self.n, "weights", "n")
        return self.n * self._unrolled.tangent(weights)

    def gram_product(self, vectors: Tensor, weights: Tensor | None = None) -> Tensor:
        """V Gᵀ diag(w) G / n, `[k, d]`, for `vectors` `[k, d]`; `weights` `[n]` or ones."""
        dots = self.dots(vectors)
        weighted = dots if weights is None else dots * weights[:, None]
        return self.sum(weighted.T.contiguous()) / self.n
