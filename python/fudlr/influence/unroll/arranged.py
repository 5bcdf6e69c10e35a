"""Projections of vectors whose layers of one shape lie side by side: one product a shape."""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.gradients.projection import Projection
from fudlr.influence.unroll.response import Layers

MULTIPLE = 8
"""Directions of a group are filled up with zeros to a multiple of this: products of such widths
take half the time."""


class ArrangedProjection:
    """S and Sᵀ of a `Projection` for vectors in the order of `response.arrange`.

    Args:
        projection: S.
        layers: In that order.
        dtype: Of the vectors.
    """

    def __init__(self, projection: Projection, layers: list[Layers], dtype: torch.dtype) -> None:
        self._projection, self._layers = projection, layers
        self._sides = [
            tuple(self._side(names, dtype) for names in zip(*group.names, strict=True))
            for group in layers
        ]
        self._places: dict[int, tuple[Tensor, Tensor, list[int]]] = {}

    def project(self, vectors: Tensor) -> Tensor:
        """S v, `[k, p]`, for `[k, d]`."""
        parts = []
        for group, (side_a, side_b) in zip(self._layers, self._sides, strict=True):
            a, b = group.stacked(vectors)
            parts += [(a @ side_a.mT).flatten(), (side_b @ b).flatten()]
        return torch.cat(parts)[self._place(len(vectors))[0]]

    def lift(self, sketches: Tensor) -> Tensor:
        """Sᵀ s, `[k, d]`, for `[k, p]`."""
        k = len(sketches)
        _, source, sizes = self._place(k)
        parts = iter(torch.cat([sketches.flatten(), sketches.new_zeros(1)])[source].split(sizes))
        out = sketches.new_empty(k, self._projection.d)
        for group, (side_a, side_b) in zip(self._layers, self._sides, strict=True):
            count, rank, _ = group.a_shape
            a = next(parts).view(count, k * rank, -1) @ side_a
            group.put(out, a, side_b.mT @ next(parts).view(count, -1, k * rank))
        return out

    def _side(self, names: tuple[str, ...], dtype: torch.dtype) -> Tensor:
        """The factors of some matrices, `[L, q, width]`, the shorter ones filled up with zeros."""
        projection = self._projection
        factors = [projection.factors.get(name) for name in names]
        # One at least: a side whose gradients were all 0 has no directions.
        q = max(1, *(0 if factor is None else len(factor) for factor in factors))
        shape = projection.shapes[names[0]]
        width = max(shape) if factors[0] is None else factors[0].shape[1]
        side = torch.zeros(len(names), -(-q // MULTIPLE) * MULTIPLE, width, dtype=dtype)
        for own, factor in zip(side, factors, strict=True):
            if factor is not None:
                own[: len(factor)] = factor.to(dtype)
        return side

    def _place(self, k: int) -> tuple[Tensor, Tensor, list[int]]:
        """Of k vectors: where each number of their sketches `[k, p]` lies among the products; which
        of these numbers each product is, k p where it is none; and how many products a side has."""
        if k in self._places:
            return self._places[k]
        blocks = {block.name: block for block in self._projection.blocks}
        place = torch.empty(k, self._projection.dim, dtype=torch.int64)
        sizes, start = [], 0
        for group, sides in zip(self._layers, self._sides, strict=True):
            for names, side, is_b in zip(
                zip(*group.names, strict=True), sides, (False, True), strict=True
            ):
                rank, q = group.a_shape[1], side.shape[1]
                sizes.append(len(names) * k * rank * q)
                own = torch.arange(start, start + sizes[-1])
                # [L, k, r, q] for A, [L, q, k, r] for B; sketches have [r, q'] and [q', r].
                own = own.view(-1, q, k, rank) if is_b else own.view(-1, k, rank, q)
                start += sizes[-1]
                for at, name in zip(own, names, strict=True):
                    if name in blocks:
                        kept = len(self._projection.factors[name])
                        part = at[:kept].transpose(0, 1) if is_b else at[..., :kept]
                        place[:, blocks[name].sketch] = part.flatten(1)
        source = torch.full((start,), place.numel())
        source[place.flatten()] = torch.arange(place.numel())
        self._places[k] = (place, source, sizes)
        return self._places[k]
