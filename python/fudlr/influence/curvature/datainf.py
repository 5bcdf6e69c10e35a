"""DataInf's closed form: the mean of inverses in place of the inverse of a mean.

    (1/n Σ g_i g_iᵀ + c I)⁻¹  ≈  (1/n) Σ (g_i g_iᵀ + c I)⁻¹
                               =  (1/(n c)) Σ (I − g_i g_iᵀ / (c + ‖g_i‖²))

block by block, by Sherman and Morrison's formula (Kwon, Wu, Wu, Zou 2023, "DataInf", arXiv
2310.00902, whose blocks are layers). As a product it is the block Fisher that it approximates; what
is DataInf's own is the inverse, which costs one pass and no iterations. The paper sets c a block to
a tenth of the mean squared gradient; here c is the damping, so that methods differ in one thing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.influence.curvature.base import Parts
from fudlr.influence.curvature.block_fisher import BlockFisher
from fudlr.influence.curvature.blocks import block_slices


class DataInf(BlockFisher):
    """Block Fisher, inverted as DataInf does.

    Args:
        rows: Gradients G `[n, d]` in memory (`rows.matrix`).
        blocks: Slices of the flat vector that cover it.
        weights: `[n]`; ones by default.

    Raises:
        UsageError: The rows are not in memory.
    """

    name = "datainf"

    @classmethod
    def make(cls, parts: Parts) -> DataInf:
        """With a block for each module."""
        return cls(parts.rows, block_slices(parts.engine.shapes, "module"), parts.of_squares)

    def inverse(self, rhs: Tensor, damping: float) -> Tensor:
        """DataInf's stand-in for (H₀ + damping · I)⁻¹ b, for each row b of `rhs` `[k, d]`."""
        if self._matrix is None or damping <= 0:
            raise UsageError(
                "DataInf's closed form was to be computed",
                f"gradients that are not in memory, or a damping of {damping:g}",
                "Set debias.rows to memory, and a damping above 0",
            )
        n = self.rows.n
        weights = torch.ones(n, dtype=rhs.dtype) if self.weights is None else self.weights.to(rhs)
        out = rhs / damping
        for block in self.blocks:
            part = self._matrix[:, block]
            # (w g gᵀ + c I)⁻¹ = (I − w g gᵀ / (c + w ‖g‖²)) / c
            share = weights / (damping + weights * part.square().sum(dim=1).to(rhs))
            dots = rhs[:, block] @ part.T
            out[:, block] -= (dots * share) @ part / (n * damping)
        return out
