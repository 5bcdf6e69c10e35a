"""Empirical Fisher without the entries between modules, or between LoRA matrices.

    H₀ = blockdiag_b (1/n) G_bᵀ diag(w) G_b,   G_b the columns of block b

What K-FAC, EK-FAC and DataInf approximate further. Each block supplies the whole shift on its own,
so that an update overshoots by about the number of blocks that share it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fudlr.influence.curvature.base import GramRows, Parts
from fudlr.influence.curvature.blocks import block_slices


class BlockFisher:
    """The diagonal blocks of the empirical Fisher.

    Args:
        rows: The gradients G, `[n, d]`, stored or recomputed; recomputed ones cost as many
            products as there are blocks.
        blocks: Slices of the flat vector that cover it (see `blocks.block_slices`).
        weights: `[n]`; ones by default.
    """

    name = "block_fisher"
    semidefinite = True
    couples_layers = False

    def __init__(
        self, rows: GramRows, blocks: Sequence[slice], weights: Tensor | None = None
    ) -> None:
        self.rows, self.blocks, self.weights = rows, list(blocks), weights
        self._matrix: Tensor | None = getattr(rows, "matrix", None)

    @classmethod
    def make(cls, parts: Parts) -> BlockFisher:
        """With a block for each module."""
        return cls(parts.rows, block_slices(parts.engine.shapes, "module"), parts.of_squares)

    def product(self, vectors: Tensor) -> Tensor:
        """H₀ v for each row v of `vectors` `[k, d]`, `[k, d]`."""
        out = torch.empty_like(vectors)
        for block in self.blocks:
            out[:, block] = self._of_block(vectors, block)
        return out

    def _of_block(self, vectors: Tensor, block: slice) -> Tensor:
        if self._matrix is None:
            alone = torch.zeros_like(vectors)
            alone[:, block] = vectors[:, block]
            return self.rows.gram_product(alone, self.weights)[:, block]
        part = self._matrix[:, block]
        dots = vectors[:, block] @ part.T
        if self.weights is not None:
            dots = dots * self.weights
        return dots @ part / self.rows.n
