"""No curvature at all.

    H₀ = c · I

Influence is then the plain product of gradients (as in TracIn, Pruthi et al. 2020, arXiv
2002.08484, at one checkpoint): it ranks, and its scale c is a guess, so that updates with it are
off by a factor that nobody knows.
"""

from __future__ import annotations

import math

from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.influence.curvature.base import Parts


class Identity:
    """c · I.

    Args:
        scale: c, finite and not negative; the damping comes on top of it.
    """

    name = "identity"
    semidefinite = True
    couples_layers = False

    def __init__(self, scale: float = 1.0) -> None:
        if not math.isfinite(scale) or scale < 0:
            raise UsageError(
                "the identity curvature needs a scale that is finite and not negative",
                f"{scale}",
                "Give 1.0, or a typical eigenvalue of the empirical Fisher",
            )
        self.scale = scale

    @classmethod
    def make(cls, parts: Parts) -> Identity:
        """Of scale 1, whatever the parts."""
        return cls()

    def product(self, vectors: Tensor) -> Tensor:
        """c · v for each row v of `vectors` `[k, d]`, `[k, d]`."""
        return vectors * self.scale
