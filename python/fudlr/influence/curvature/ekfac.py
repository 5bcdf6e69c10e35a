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

from math import prod
from typing import Any

import torch
from torch import Tensor

from fudlr.common.batches import Batches
from fudlr.gradients.matrix import Forward, Loss
from fudlr.influence.curvature.parts import Parts
from fudlr_ext.blocks import Sides
from fudlr_ext.reducers import Factors, Sketch


class EKFAC:
    """EK-FAC of the LoRA matrices; two passes over the samples when it is made."""

    couples_layers = False
    from_rows = False

    def __init__(self, parts: Parts) -> None:
        # g_i enters squared: √w in the loss is w in the matrix.
        weights = parts.of_squares
        face = parts.face(None if weights is None else weights.sqrt())
        self._shapes = parts.engine.shapes
        self._bases = _eigenbases(parts.engine, *face)
        self._values = self._variances(parts.engine, *face)

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
            values += sketch.result().double().square().sum(dim=0).cpu()
        return values / batches.n

    def _scaled(self, vectors: Tensor, values: Tensor) -> Tensor:
        out, start = torch.empty_like(vectors), 0
        for name, shape in self._shapes.items():
            part = slice(start, start + prod(shape))
            p, q = (basis.to(vectors) for basis in self._bases[name])
            turned = p.T @ vectors[:, part].unflatten(1, shape) @ q
            scaled = turned * values[part].to(vectors).view(shape)
            out[:, part] = (p @ scaled @ q.T).flatten(1)
            start = part.stop
        return out


def _eigenbases(
    engine: Any, forward: Forward, loss: Loss, batches: Batches
) -> dict[str, tuple[Tensor, Tensor]]:
    """Eigenvectors of L `[a, a]` and R `[b, b]` of every LoRA matrix; one pass over the batches."""
    left: dict[str, Tensor] = {}
    right: dict[str, Tensor] = {}
    counts = torch.zeros(len(engine.names), dtype=torch.int64)
    for batch, _ in batches:
        factors = Factors()
        engine.reduce(forward, loss, batch, [factors])
        counts += factors.result().cpu()
        for name in engine.names:
            left[name] = left.get(name, 0) + factors.left[name].double().cpu()
            right[name] = right.get(name, 0) + factors.right[name].double().cpu()
    return {
        name: (
            torch.linalg.eigh(left[name] / batches.n).eigenvectors,
            torch.linalg.eigh(right[name] / max(count, 1)).eigenvectors,
        )
        for name, count in zip(engine.names, counts.tolist(), strict=True)
    }
