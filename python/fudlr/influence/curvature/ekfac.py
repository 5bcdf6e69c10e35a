"""EK-FAC: K-FAC's eigenbases with the variances that the gradients really have in them.

    H₀ = blockdiag_b (P_b ⊗ Q_b) diag(s_b) (P_b ⊗ Q_b)ᵀ,   s_b = (1/n) Σ_i (P_bᵀ G_i Q_b)²

P and Q are the eigenvectors of K-FAC's L and R; G_i is the whole sample's gradient, so that s is
the diagonal of the block Fisher in that basis (George et al. 2018, arXiv 1806.03884; for influence
Grosse et al. 2023, arXiv 2308.03296). Labels are the data's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr.common.batches import Batches, Source
from fudlr.influence.curvature.base import Forward, Loss, Parts, weighted
from fudlr.influence.curvature.kfac import Kronecker, factor_spectrum
from fudlr_ext.reducers import Sides, Sketch


class EKFAC(Kronecker):
    """EK-FAC of the LoRA matrices; two passes over the samples when it is made.

    Args:
        engine: `fudlr_ext.Engine`, for `reduce`, `names` and `shapes`.
        forward: `forward(model, batch) -> outputs`.
        loss: `loss(outputs, batch) -> [n]`.
        batches: The samples.
        weights: `[n]`; ones by default.
    """

    name = "ekfac"

    def __init__(
        self,
        engine: Any,
        forward: Forward,
        loss: Loss,
        batches: Batches | Source,
        weights: Tensor | None = None,
    ) -> None:
        root = None if weights is None else weights.sqrt()
        forward, loss, batches = weighted(forward, loss, Batches.of(batches), root)
        spectrum = factor_spectrum(engine, forward, loss, batches)
        bases = {name: (left[1], right[1]) for name, (left, right) in spectrum.items()}
        values = torch.zeros(engine.d, dtype=torch.float64)
        turn: dict[str, Sides] = {
            name: (p.T.to(engine.dtype).contiguous(), q.T.to(engine.dtype).contiguous())
            for name, (p, q) in bases.items()
        }
        for batch, _ in batches:
            reducer = Sketch(turn)
            engine.reduce(forward, loss, batch, [reducer])
            values += reducer.result().double().square().sum(dim=0)
        super().__init__(engine.shapes, bases, values / batches.n)

    @classmethod
    def make(cls, parts: Parts) -> EKFAC:
        """At the adapter that the engine holds."""
        return cls(parts.engine, parts.forward, parts.loss, parts.batches, parts.of_squares)
