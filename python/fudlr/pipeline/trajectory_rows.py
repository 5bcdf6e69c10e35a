"""What each sample did to the trained adapter, as if it were a row of gradients.

Row i is n ∂θ*/∂m_i, through the whole training. With H⁻¹ = 1 every formula of the closed form then
speaks of the training instead of its optimum: influence (1/n) rows · ∇F, update (1/n) Σ m_i row_i.
The rows are never made: products with them go through the batches, forwards or backwards.
"""

from __future__ import annotations

from torch import Tensor

from fudlr.gradients.store.rows import check_columns
from fudlr.influence.unroll import Replay


class TrajectoryRows:
    """The rows of a `Replay`, seen through their products; see `store.GradientRows`."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    @property
    def n(self) -> int:
        """Number of samples."""
        return self._replay.n

    @property
    def d(self) -> int:
        """Number of parameters."""
        return self._replay.d

    def dots(self, vectors: Tensor) -> Tensor:
        """G Vᵀ, `[n, k]`, for `vectors` V `[k, d]`; one pass from the last batch back."""
        check_columns(vectors, self.d, "vectors", "d")
        return self.n * self._replay.influence(vectors)

    def sum(self, weights: Tensor) -> Tensor:
        """Σ_i w_i g_i, `[w, d]`, for `weights` `[w, n]`; one pass over the batches."""
        check_columns(weights, self.n, "weights", "n")
        return self.n * self._replay.tangent(weights)

    def gram_product(self, vectors: Tensor, weights: Tensor | None = None) -> Tensor:
        """V Gᵀ diag(w) G / n, `[k, d]`, for `vectors` `[k, d]`; `weights` `[n]` or ones."""
        dots = self.dots(vectors)
        weighted = dots if weights is None else dots * weights[:, None]
        return self.sum(weighted.T.contiguous()) / self.n
