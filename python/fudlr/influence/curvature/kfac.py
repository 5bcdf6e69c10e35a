"""K-FAC: each LoRA matrix's empirical Fisher as a Kronecker product of two small matrices.

    H₀ = blockdiag_b L_b ⊗ R_b,   L = (1/n) Σ_{i,t} l_it l_itᵀ,   R = (1/N) Σ_{i,t} r_it r_itᵀ

where the block's gradient is G_i = Σ_t l_it r_itᵀ (see `fudlr_ext.reducers`) and N the number of
positions with l ≠ 0. Positions count as independent, as in "K-FAC-expand" (Martens and Grosse 2015,
arXiv 1503.05671; Eschenhagen et al. 2023, arXiv 2311.00636). Labels are the data's. The damped
inverse is exact, in the eigenbases of L and R: no factored damping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fudlr.common.batches import Batches, Source
from fudlr.influence.curvature.base import Forward, Loss, Parts, weighted
from fudlr.influence.curvature.blocks import matrix_slices
from fudlr_ext.reducers import Factors


class Kronecker:
    """blockdiag_b (P_b ⊗ Q_b) diag(s_b) (P_b ⊗ Q_b)ᵀ, its products and its damped inverse.

    Args:
        shapes: Of the LoRA matrices, in flat order.
        bases: Orthogonal P `[a, a]` and Q `[b, b]` by the matrix's name.
        values: s `[d]`, in flat order, not negative.
    """

    semidefinite = True
    couples_layers = False

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        bases: Mapping[str, tuple[Tensor, Tensor]],
        values: Tensor,
    ) -> None:
        self._shapes, self._bases, self._values = shapes, bases, values

    def product(self, vectors: Tensor) -> Tensor:
        """H₀ v for each row v of `vectors` `[k, d]`, `[k, d]`."""
        return self._scaled(vectors, self._values)

    def inverse(self, rhs: Tensor, damping: float) -> Tensor:
        """(H₀ + damping · I)⁻¹ b for each row b of `rhs` `[k, d]`, `[k, d]`; exact."""
        return self._scaled(rhs, 1 / (self._values + damping))

    def _scaled(self, vectors: Tensor, values: Tensor) -> Tensor:
        out = torch.empty_like(vectors)
        for name, part in matrix_slices(self._shapes).items():
            p, q = (basis.to(vectors) for basis in self._bases[name])
            turned = p.T @ vectors[:, part].unflatten(1, self._shapes[name]) @ q
            scaled = turned * values[part].to(vectors).view(self._shapes[name])
            out[:, part] = (p @ scaled @ q.T).flatten(1)
        return out


Spectrum = dict[str, tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]
"""By matrix: eigenvalues and -vectors of L, and of R."""


def factor_spectrum(engine: Any, forward: Forward, loss: Loss, batches: Batches) -> Spectrum:
    """Eigenvalues and eigenvectors of L and R of every LoRA matrix; one pass over the batches."""
    left: dict[str, Tensor] = {}
    right: dict[str, Tensor] = {}
    counts = torch.zeros(len(engine.names), dtype=torch.int64)
    for batch, _ in batches:
        reducer = Factors()
        engine.reduce(forward, loss, batch, [reducer])
        counts += reducer.result()
        for name in engine.names:
            left[name] = left.get(name, 0) + reducer.left[name].double()
            right[name] = right.get(name, 0) + reducer.right[name].double()
    return {
        name: (_eigen(left[name] / batches.n), _eigen(right[name] / max(count, 1)))
        for name, count in zip(engine.names, counts.tolist(), strict=True)
    }


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp_min(0), vectors


class KFAC(Kronecker):
    """K-FAC of the LoRA matrices; one pass over the samples when it is made.

    Args:
        engine: `fudlr_ext.Engine`, for `reduce`, `names` and `shapes`.
        forward: `forward(model, batch) -> outputs`.
        loss: `loss(outputs, batch) -> [n]`.
        batches: The samples.
        weights: `[n]`; ones by default.
    """

    name = "kfac"

    def __init__(
        self,
        engine: Any,
        forward: Forward,
        loss: Loss,
        batches: Batches | Source,
        weights: Tensor | None = None,
    ) -> None:
        root = None if weights is None else weights.sqrt()
        face = weighted(forward, loss, Batches.of(batches), root)
        spectrum = factor_spectrum(engine, *face)
        pairs = spectrum.values()
        values = torch.cat([torch.outer(left[0], right[0]).flatten() for left, right in pairs])
        bases = {name: (left[1], right[1]) for name, (left, right) in spectrum.items()}
        super().__init__(engine.shapes, bases, values)

    @classmethod
    def make(cls, parts: Parts) -> KFAC:
        """At the adapter that the engine holds."""
        return cls(parts.engine, parts.forward, parts.loss, parts.batches, parts.of_squares)
