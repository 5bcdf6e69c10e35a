"""Where a request is solved: the adapter's own space, or the one its sketched rows span.

Sketches are s_i = S g_i. With orthonormal rows, S Sᵀ = 1, the method restricted to the span of Sᵀ:

    x = (S GᵀG Sᵀ / n + damping)⁻¹ S ∇F,   influence s_iᵀ x / n,   update Sᵀ x

and the lift Sᵀ of a shift is the shift. Where a factor's rows are not orthonormal, P = L Q with L
lower triangular and Q orthonormal (its QR, transposed), and L⁻¹ P g = Q g: the same rows in an
orthonormal basis of the same span, at the price of two small products for each matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fudlr.gradients.store.errors import StoreError
from fudlr.gradients.store.projection import Factors, Projection
from fudlr.gradients.store.rows import GradientRows, KeptRows

ORTHONORMAL = 1e-4
"""Largest entry of |P Pᵀ − 1| that counts as rounding: float32 factors of 10⁴ columns have 1e-5."""


@dataclass(frozen=True)
class Space:
    """Rows of gradients, and how vectors of the adapter get into their space and back.

    Attributes:
        rows: Of the samples at `index`, `[m, p]`.
        total: n, all training samples: the divisor of the loss.
        projection: S with orthonormal rows; None where rows are whole gradients.
        index: Which of the n samples the rows are, rising `[m]`; None where all.
        terms: Of how many terms each row's loss is the mean, `[m]`; one each where None.
    """

    rows: GradientRows
    total: int
    projection: Projection | None = None
    index: Tensor | None = None
    terms: Tensor | None = None

    def project(self, vectors: Tensor) -> Tensor:
        """S v, `[k, p]`, for vectors of the adapter `[k, d]`."""
        return vectors if self.projection is None else self.projection.project(vectors)

    def lift(self, sketches: Tensor) -> Tensor:
        """Sᵀ x, `[k, d]`, for `[k, p]`."""
        return sketches if self.projection is None else self.projection.lift(sketches)

    def spread(self, values: Tensor, fill: float) -> Tensor:
        """Values of the rows `[m, …]` as values of all samples `[n, …]`, `fill` for the others."""
        if self.index is None:
            return values
        out = values.new_full((self.total, *values.shape[1:]), fill)
        out[self.index] = values
        return out

    def of_rows(self, values: Tensor) -> Tensor:
        """Values of all samples `[n]` as values of the rows `[m]`."""
        return values if self.index is None else values[self.index]


def sketch_space(rows: KeptRows, projection: Projection) -> Space:
    """The space of all samples' sketches under `projection`, in an orthonormal basis.

    Raises:
        StoreError: Two directions of a factor are the same, so that no basis is theirs.
    """
    turned: dict[str, Factors] = {}
    triangles: dict[str, tuple[Tensor | None, Tensor | None]] = {}
    for block in projection.blocks:
        pair = projection.factors[block.name]
        left, left_inverse = _orthonormal(block.name, pair.left)
        right, right_inverse = _orthonormal(block.name, pair.right)
        turned[block.name] = Factors(left, right)
        triangles[block.name] = (left_inverse, right_inverse)
    if all(each is None for pair in triangles.values() for each in pair):
        return Space(rows, rows.n, projection)
    basis = Projection(projection.shapes, turned, kind=projection.kind, seed=projection.seed)
    return Space(TurnedRows(rows, basis, triangles), rows.n, basis)


def _orthonormal(name: str, factor: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Q and L⁻¹ of a factor P = L Q; the factor itself and None where it is orthonormal."""
    if factor is None:
        return None, None
    wide = factor.double()
    one = torch.eye(len(wide), dtype=torch.float64)
    if float((wide @ wide.T - one).abs().max()) <= ORTHONORMAL:
        return factor, None
    q, r = torch.linalg.qr(wide.T)
    scale = r.diagonal().abs()
    if len(wide) > wide.shape[1] or float(scale.min()) <= 1e-6 * float(scale.max()):
        raise StoreError(
            "a request was to be solved in a store's space",
            f"the directions of {name} in its projection are not independent",
            "Record with principal or orthonormal directions, or fewer of them",
        )
    return q.T.to(factor), torch.linalg.inv(r.T).to(factor)


class TurnedRows:
    """Rows s_i of a store as T s_i, T = ⊕ L_l⁻¹ ⊗ L_r⁻¹; products only, the rows stay as they are.

    Args:
        rows: `[n, p]`.
        projection: Places the blocks in a row.
        triangles: L_l⁻¹ and L_r⁻¹ by matrix, None for one that is not turned.
    """

    def __init__(
        self,
        rows: KeptRows,
        projection: Projection,
        triangles: dict[str, tuple[Tensor | None, Tensor | None]],
    ) -> None:
        self.rows = rows
        self._projection = projection
        self._triangles = triangles

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.rows.n

    @property
    def d(self) -> int:
        """Numbers in a row."""
        return self.rows.d

    def dots(self, vectors: Tensor) -> Tensor:
        """(G Tᵀ) Vᵀ, `[n, k]`, for `vectors` `[k, p]`."""
        return self.rows.dots(self._back(vectors))

    def sum(self, weights: Tensor) -> Tensor:
        """Σ_i w_i T s_i, `[w, p]`, for `weights` `[w, n]`."""
        return self._turn(self.rows.sum(weights))

    def gram_product(self, vectors: Tensor, weights: Tensor | None = None) -> Tensor:
        """V T Gᵀ diag(w) G Tᵀ / n, `[k, p]`."""
        return self._turn(self.rows.gram_product(self._back(vectors), weights))

    def take(self, index: Tensor) -> Tensor:
        """T s_i of the rows at `index` `[m]`, `[m, p]` float32."""
        return self._turn(self.rows.take(index))

    def _turn(self, sketches: Tensor) -> Tensor:
        return self._each(sketches, _apply)

    def _back(self, vectors: Tensor) -> Tensor:
        def transposed(part: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
            return _apply(
                part, None if left is None else left.T, None if right is None else right.T
            )

        return self._each(vectors, transposed)

    def _each(
        self, sketches: Tensor, function: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
    ) -> Tensor:
        out = torch.empty_like(sketches)
        for block in self._projection.blocks:
            part = self._projection.part(sketches, block)
            left, right = (
                each if each is None else each.to(sketches) for each in self._triangles[block.name]
            )
            self._projection.part(out, block).copy_(function(part, left, right))
        return out


def _apply(part: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    part = part if left is None else left @ part
    return part if right is None else part @ right.T
