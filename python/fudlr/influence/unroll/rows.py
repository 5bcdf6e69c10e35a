"""What each sample did to the trained adapter, as if it were a row of gradients.

Row i is n ∂θ*/∂m_i, through the whole training. With H⁻¹ = 1 every formula of the closed form then
describes the training instead of its optimum: influence (1/n) rows · ∇F, update (1/n) Σ m_i row_i.
The rows are never made: products with them go through the steps, forwards or backwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.gradients.matrix import GradientMatrix
from fudlr.influence.unroll.unrolled import Unrolled

SPANNED = 1e-6
"""Of a vector, what may be left of it where others make it up: float32's rounding of sums."""
KEPT = 32
"""Vectors whose products are kept, the latest ones."""
COLUMNS = 2**16
"""Numbers of each vector that are in float64 at a time."""


class UnrolledRows(GradientMatrix):
    """The rows of an `Unrolled` training as a `GradientMatrix`: a product with vectors is one pass
    from the last step back, a sum one pass over the steps.

    Products are kept: a metric's gradient is the sum of its users' parts, which diagnostics ask
    for before, and vectors that earlier ones make up need no pass.
    """

    def __init__(self, unrolled: Unrolled) -> None:
        self.n, self.d, self._unrolled = unrolled.n, unrolled.d, unrolled
        self._known = torch.zeros(0, self.d), torch.zeros(self.n, 0)  # vectors, products

    def _dots(self, vectors: Tensor) -> Tensor:
        vectors = vectors.cpu()
        basis, products = (each.to(vectors) for each in self._known)
        weights = vectors.new_zeros(len(vectors), len(basis) + len(vectors))
        for line, vector in zip(weights, vectors, strict=True):
            found = _weights(vector, basis)
            if found is None:
                basis, found = torch.cat([basis, vector[None]]), vector.new_ones(1)
            line[len(basis) - len(found) : len(basis)] = found
        if len(fresh := basis[products.shape[1] :]):
            products = torch.cat([products, self.n * self._unrolled.influence(fresh)], 1)
        self._known = basis[-KEPT:], products[:, -KEPT:]
        return products @ weights[:, : len(basis)].T

    def _sum(self, weights: Tensor) -> Tensor:
        return self.n * self._unrolled.tangent(weights)


def _weights(vector: Tensor, basis: Tensor) -> Tensor | None:
    """Of `basis` `[K, d]`, such as make up `vector` `[d]` to rounding, `[K]`; None where they do
    not."""
    sizes = basis.norm(dim=1).clamp_min(torch.finfo(basis.dtype).tiny)
    unit = basis / sizes[:, None]
    # Parts of one gradient are much alike: float32's rounding would count in what tells them apart.
    both = torch.cat([unit, vector[None]]).split(COLUMNS, 1)
    products = torch.stack([x[:-1].double() @ x.double().T for x in both]).sum(0)
    gram, right = products[:, :-1], products[:, -1]
    weights = (torch.linalg.pinv(gram, hermitian=True, rtol=1e-9) @ right).to(vector)
    left = (vector - weights @ unit).norm()
    return weights / sizes if bool(left <= SPANNED * vector.norm()) else None
