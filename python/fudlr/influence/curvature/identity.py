"""No curvature at all, as a baseline.

    H₀ = I

Influence is then the plain product of gradients (as in TracIn, Pruthi et al. 2020, arXiv
2002.08484, at one checkpoint): it ranks, and its scale is a guess, so that its update is rescaled.
"""

from __future__ import annotations

from torch import Tensor

from fudlr.influence.curvature.base import Parts


class Identity:
    """I; the damping comes on top of it."""

    semidefinite = True
    couples_layers = False
    from_rows = False

    @classmethod
    def make(cls, parts: Parts) -> Identity:
        """The same whatever the parts."""
        return cls()

    def product(self, vectors: Tensor) -> Tensor:
        """v for each row v of `vectors` `[k, d]`, `[k, d]`."""
        return vectors

    def inverse(self, rhs: Tensor, damping: float) -> Tensor:
        """b / (1 + damping) for each row b of `rhs` `[k, d]`, `[k, d]`."""
        return rhs / (1 + damping)
