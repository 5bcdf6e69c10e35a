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
        every = torch.cat([basis, vectors])
        gram, at = _gram(every), list(range(len(basis)))  # at: of which products are there
        weights = vectors.new_zeros(len(vectors), len(every))
        for number, line in enumerate(weights, len(basis)):
            found = _weights(every, gram, at, number)
            if found is None:
                at.append(number)
                line[number] = 1
            else:
                line[at] = found
        if fresh := at[len(basis) :]:
            products = torch.cat([products, self.n * self._unrolled.influence(every[fresh])], 1)
        self._known = every[at[-KEPT:]], products[:, -KEPT:]
        return products @ weights[:, at].T

    def _sum(self, weights: Tensor) -> Tensor:
        return self.n * self._unrolled.tangent(weights)


def _gram(vectors: Tensor) -> Tensor:
    """V Vᵀ in float64."""
    # Parts of one gradient are much alike: float32's rounding would count in what tells them apart.
    return torch.stack([x @ x.T for x in map(Tensor.double, vectors.split(COLUMNS, 1))]).sum(0)


def _weights(vectors: Tensor, gram: Tensor, at: list[int], number: int) -> Tensor | None:
    """Of those `at`, such as make up the one of this `number` to rounding; None where they do
    not."""
    vector = vectors[number]
    sizes = gram.diagonal()[at].sqrt().clamp_min(torch.finfo(vectors.dtype).tiny)
    unit = gram[at][:, at] / sizes / sizes[:, None]
    found = torch.linalg.pinv(unit, hermitian=True, rtol=1e-9) @ (gram[at, number] / sizes)
    weights = (found / sizes).to(vector)
    left = (vector - weights @ vectors[at]).norm()
    return weights if bool(left <= SPANNED * vector.norm()) else None
