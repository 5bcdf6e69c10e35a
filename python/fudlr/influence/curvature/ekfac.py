"""EK-FAC: Kronecker-factored eigenbases with the variances that the gradients really have in them.

    H₀ = blockdiag_b (P_b ⊗ Q_b) diag(s_b) (P_b ⊗ Q_b)ᵀ,   s_b = (1/n) Σ_i (P_bᵀ G_i Q_b)²

One block a LoRA matrix. P and Q are the eigenvectors of K-FAC's factors

    L = (1/n) Σ_{i,t} l_it l_itᵀ,   R = (1/N) Σ_{i,t} r_it r_itᵀ,   G_i = Σ_t l_it r_itᵀ,

N the number of positions with l ≠ 0 (Martens and Grosse 2015, arXiv 1503.05671; positions count as
independent, Eschenhagen et al. 2023, arXiv 2311.00636). s is the diagonal of the empirical Fisher
in that basis, of whole samples' gradients (George et al. 2018, arXiv 1806.03884; for influence
Grosse et al. 2023, arXiv 2308.03296). Labels are the data's. The damped inverse is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor

from fudlr.common.batches import Batches, Source
from fudlr.influence.curvature.base import Forward, Loss, Parts, weighted
from fudlr_ext.reducers import Factors, Sides, Sketch

Bases = dict[str, tuple[Tensor, Tensor]]
"""By matrix: orthogonal P `[a, a]` and Q `[b, b]`."""


class EKFAC:
    """EK-FAC of the LoRA matrices; two passes over the samples when it is made.

    Args:
        engine: `fudlr_ext.Engine`, for `reduce`, `names` and `shapes`.
        forward: `forward(model, batch) -> outputs`.
        loss: `loss(outputs, batch) -> [n]`.
        batches: The samples.
        weights: `[n]`; ones by default.
    """

    semidefinite = True
    couples_layers = False
    from_rows = False

    def __init__(
        self,
        engine: Any,
        forward: Forward,
        loss: Loss,
        batches: Batches | Source,
        weights: Tensor | None = None,
    ) -> None:
        # g_i enters squared: √w in the loss is w in the matrix.
        root = None if weights is None else weights.sqrt()
        face = weighted(forward, loss, Batches.of(batches), root)
        self._shapes = engine.shapes
        self._bases = _eigenbases(engine, *face)
        self._values = self._variances(engine, *face)

    @classmethod
    def make(cls, parts: Parts) -> EKFAC:
        """At the adapter that the engine holds."""
        return cls(parts.engine, parts.forward, parts.loss, parts.batches, parts.of_squares)

    def product(self, vectors: Tensor) -> Tensor:
        """H₀ v for each row v of `vectors` `[k, d]`, `[k, d]`."""
        return self._scaled(vectors, self._values)

    def inverse(self, rhs: Tensor, damping: float) -> Tensor:
        """(H₀ + damping · I)⁻¹ b for each row b of `rhs` `[k, d]`, `[k, d]`; exact."""
        return self._scaled(rhs, 1 / (self._values + damping))

    def _variances(self, engine: Any, forward: Forward, loss: Loss, batches: Batches) -> Tensor:
        """s `[d]`, in flat order."""
        turn: dict[str, Sides] = {
            name: (p.T.to(engine.dtype).contiguous(), q.T.to(engine.dtype).contiguous())
            for name, (p, q) in self._bases.items()
        }
        values = torch.zeros(engine.d, dtype=torch.float64)
        for batch, _ in batches:
            sketch = Sketch(turn)
            engine.reduce(forward, loss, batch, [sketch])
            values += sketch.result().double().square().sum(dim=0)
        return values / batches.n

    def _scaled(self, vectors: Tensor, values: Tensor) -> Tensor:
        out = torch.empty_like(vectors)
        for name, part in self._slices():
            shape = self._shapes[name]
            p, q = (basis.to(vectors) for basis in self._bases[name])
            turned = p.T @ vectors[:, part].unflatten(1, shape) @ q
            scaled = turned * values[part].to(vectors).view(shape)
            out[:, part] = (p @ scaled @ q.T).flatten(1)
        return out

    def _slices(self) -> Iterator[tuple[str, slice]]:
        """Where each matrix lies in the flat vector."""
        start = 0
        for name, shape in self._shapes.items():
            yield name, slice(start, start + prod(shape))
            start += prod(shape)


def _eigenbases(engine: Any, forward: Forward, loss: Loss, batches: Batches) -> Bases:
    """Eigenvectors of L and R of every LoRA matrix; one pass over the batches."""
    left: dict[str, Tensor] = {}
    right: dict[str, Tensor] = {}
    counts = torch.zeros(len(engine.names), dtype=torch.int64)
    for batch, _ in batches:
        factors = Factors()
        engine.reduce(forward, loss, batch, [factors])
        counts += factors.result()
        for name in engine.names:
            left[name] = left.get(name, 0) + factors.left[name].double()
            right[name] = right.get(name, 0) + factors.right[name].double()
    return {
        name: (
            torch.linalg.eigh(left[name] / batches.n).eigenvectors,
            torch.linalg.eigh(right[name] / max(count, 1)).eigenvectors,
        )
        for name, count in zip(engine.names, counts.tolist(), strict=True)
    }
