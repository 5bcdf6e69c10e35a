"""What to reduce per-sample gradients to while the backward pass makes them: one class each.

A reducer is given the two factors of every LoRA matrix's gradients, block by block as the backward
pass reaches them, and never the gradients themselves. A block that is used several times in one
forward pass arrives several times, and its parts add up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from fudlr_ext.blocks import Block, Lines, Sides
from fudlr_ext.errors import EngineError
from fudlr_ext.layers import Layout
from fudlr_ext.ops import grad_sum, sample_dots, sample_grads, sample_sketch
from fudlr_ext.ops.record import add_sketches

LARGEST_MOMENT = 16384
"""Width of the largest second moment that is kept: 1 GiB in float32."""

Use = tuple[Block, Tensor, Tensor]
"""One use of a block in a pass, with its factors left [..., a] and right [..., b] in one dtype."""


class EvenOffsets:
    """Where each of n samples of one length begins, [n + 1]."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._known: dict[int, Tensor] = {}

    def of(self, x: Tensor) -> Tensor:
        """Return the offsets of x [..., d], made once for each number of positions."""
        positions = x.shape[:-1].numel()
        found = self._known.get(positions)
        if found is None:
            each = positions // max(self._n, 1)
            found = self._known[positions] = torch.arange(self._n + 1, device=x.device) * each
        return found


class Reducer(ABC):
    """One pass's reduction; `start` is called once, then `add` for every block, then `result`."""

    @abstractmethod
    def start(self, layout: Layout, n: int) -> None:
        """Get ready for `n` samples of a model with this layout."""

    @abstractmethod
    def add(self, block: Block, left: Tensor, right: Tensor, offsets: Tensor) -> None:
        """Take the factors of the block's gradients G_i = Σ_t left_t right_tᵀ.

        Args:
            block: The matrix [a, b].
            left: [T, a], the positions of all samples one after the other; rows may be strided.
            right: [T, b].
            offsets: [n + 1]; sample i has the positions offsets[i] to offsets[i + 1].
        """

    def add_all(self, uses: Sequence[Use], n: int, offsets: Tensor | None = None) -> None:
        """Take several blocks' factors of n samples, of one length where there are no offsets."""
        even = EvenOffsets(n)
        for block, left, right in uses:
            at = even.of(left) if offsets is None else offsets
            self.add(block, left.flatten(0, -2), right.flatten(0, -2), at)

    @abstractmethod
    def result(self) -> Tensor:
        """Return what was asked for; called once."""


class Rows(Reducer):
    """The gradients themselves, [n, d]."""

    def start(self, layout: Layout, n: int) -> None:
        self._rows = torch.zeros(n, layout.d, dtype=layout.dtype, device=layout.device)

    def add(self, block: Block, left: Tensor, right: Tensor, offsets: Tensor) -> None:
        self._rows[:, block.index] += sample_grads(left, right, offsets).flatten(1)

    def result(self) -> Tensor:
        return self._rows


class Dots(Reducer):
    """Their products with vectors [k, d], as [n, k]."""

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors

    def start(self, layout: Layout, n: int) -> None:
        self._dots = self._vectors.new_zeros(n, self._vectors.shape[0])

    def add(self, block: Block, left: Tensor, right: Tensor, offsets: Tensor) -> None:
        self._dots += sample_dots(left, right, block.of(self._vectors), offsets)

    def result(self) -> Tensor:
        return self._dots


class Sums(Reducer):
    """Their sums with weights [w, n], as [w, d]."""

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights

    def start(self, layout: Layout, n: int) -> None:
        self._weights = self._weights.to(layout.device)
        self._sums = self._weights.new_zeros(self._weights.shape[0], layout.d)

    def add(self, block: Block, left: Tensor, right: Tensor, offsets: Tensor) -> None:
        self._sums[:, block.index] += grad_sum(left, right, self._weights, offsets).flatten(1)

    def result(self) -> Tensor:
        return self._sums


class Sketch(Reducer):
    """The gradients of some matrices, each projected as P_l G P_rᵀ: [n, p], p numbers a sample.

    The matrices stand in flat order, each row by row, and those that are not named are left out.

    Args:
        projection: The sides of every matrix to keep, by its name.
    """

    def __init__(self, projection: Mapping[str, Sides]) -> None:
        self._projection = projection
        self._layout: Layout | None = None

    def start(self, layout: Layout, n: int) -> None:
        if layout is not self._layout:
            self._prepare(layout)
        self._rows = torch.zeros(n, self._p, dtype=layout.dtype, device=layout.device)

    def _prepare(self, layout: Layout) -> None:
        unknown = [name for name in self._projection if name not in set(layout.names)]
        if unknown or not self._projection:
            raise EngineError(
                f"sketches of some of the {len(layout.names)} LoRA matrices were asked for",
                f"no matrix has the name {unknown[0]!r}" if unknown else "none is named",
                "Give at least one matrix its projections, by the names in engine.names",
            )
        self._blocks: dict[str, tuple[slice, tuple[int, int], Sides]] = {}
        self._one_sided: dict[str, tuple[int, int, bool, int]] = {}
        self._tables: dict[tuple[tuple[int, int, bool, int], ...], Tensor] = {}
        directions, start, p = [], 0, 0
        for block in layout.blocks:
            if block.name in self._projection:
                sides = tuple(self._projection[block.name])
                rows, columns = map(_sketched, sides, block.shape, (block.name,) * 2)
                left, right = (
                    None if side is None else side.detach().to(layout.device, layout.dtype)
                    for side in sides
                )
                place = slice(p, p + rows * columns)
                self._blocks[block.name] = (place, (rows, columns), (left, right))
                one = right if left is None else left if right is None else None
                if one is not None:
                    self._one_sided[block.name] = (start, one.shape[0], right is None, p)
                    directions.append(one.flatten())
                    start += one.numel()
                p += rows * columns
        none = torch.empty(0, dtype=layout.dtype, device=layout.device)
        self._directions = torch.cat([none, *directions])
        self._layout, self._p = layout, p

    def add(self, block: Block, left: Tensor, right: Tensor, offsets: Tensor) -> None:
        if block.name in self._blocks:
            place, shape, sides = self._blocks[block.name]
            found = sample_sketch(left, right, *block.sides(sides), offsets=offsets)
            block.among(self._rows[:, place].unflatten(1, shape), found)

    def add_all(self, uses: Sequence[Use], n: int, offsets: Tensor | None = None) -> None:
        dtype, entries, lefts, rights, others = self._rows.dtype, [], [], [], []
        for block, left, right in uses:
            entry = self._one_sided.get(block.name)
            plain = left.dtype == dtype and left.is_cpu and not left.requires_grad
            if entry is not None and plain and not isinstance(block, Lines):
                entries.append(entry)
                lefts.append(left)
                rights.append(right)
            else:
                others.append((block, left, right))
        if others:
            super().add_all(others, n, offsets)
        if entries:
            key = tuple(entries)
            table = self._tables.get(key)
            if table is None:
                table = self._tables[key] = torch.tensor(entries)
            add_sketches(self._rows, lefts, rights, offsets, self._directions, table)

    def result(self) -> Tensor:
        return self._rows


def _sketched(side: Tensor | None, width: int, name: str) -> int:
    """Return how many numbers are left of `width` after `side`; raise where it does not fit."""
    if side is None:
        return width
    if side.dim() != 2 or side.shape[1] != width:
        raise EngineError(
            f"a projection [q, {width}] was expected for {name}",
            f"its shape is {list(side.shape)}",
            "P_l has as many columns as the matrix has rows, P_r as the matrix has columns",
        )
    return side.shape[0]


class FisherProduct(Reducer):
    """The empirical Fisher's products (1/n) Σ_i w_i g_i ⟨g_i, v⟩ with vectors [k, d], as [k, d].

    The factors are kept until all products ⟨g_i, v⟩ are known, so that one backward pass suffices:
    that is memory for the inputs and output gradients of every adapted layer.
    """

    def __init__(self, vectors: Tensor, weights: Tensor | None = None) -> None:
        self._vectors = vectors
        self._weights = weights

    def start(self, layout: Layout, n: int) -> None:
        if self._weights is not None and len(self._weights) != n:
            raise EngineError(
                "a Fisher product was to be weighted sample by sample",
                f"there are {len(self._weights)} weights and {n} samples",
                "Give weights of shape [n]",
            )
        self._n = n
        self._dots = Dots(self._vectors)
        self._dots.start(layout, n)
        self._layout = layout
        self._factors: list[tuple[Block, Tensor, Tensor, Tensor]] = []

    def add(self, block: Block, left: Tensor, right: Tensor, offsets: Tensor) -> None:
        self._dots.add(block, left, right, offsets)
        # Their sums are taken after the backward pass, where autograd records again.
        self._factors.append((block, left.detach(), right.detach(), offsets))

    def result(self) -> Tensor:
        dots = self._dots.result().t() / self._n
        sums = Sums(dots if self._weights is None else (dots * self._weights).contiguous())
        sums.start(self._layout, self._n)
        for factors in self._factors:
            sums.add(*factors)
        self._factors.clear()
        return sums.result()


class Factors(Reducer):
    """Second moments of each block's two factors, summed over samples and positions.

    left[name] is Σ l lᵀ [a, a] and right[name] Σ r rᵀ [b, b], over the positions whose output
    gradient l is not zero (padding has none); the result is how many these are, one a block.
    """

    def start(self, layout: Layout, n: int) -> None:
        for block in layout.blocks:
            if max(block.shape) > LARGEST_MOMENT:
                raise EngineError(
                    "the second moments of all factors were to be kept",
                    f"{block.name} is {list(block.shape)}, with {LARGEST_MOMENT} as the most",
                    "Take another curvature than EK-FAC, or do not adapt the embeddings",
                )
        new = partial(torch.zeros, dtype=layout.dtype, device=layout.device)
        self._order = [block.name for block in layout.blocks]
        self.left = {block.name: new(block.shape[0], block.shape[0]) for block in layout.blocks}
        self.right = {block.name: new(block.shape[1], block.shape[1]) for block in layout.blocks}
        self._counts = dict.fromkeys(self._order, 0)

    def add(self, block: Block, left: Tensor, right: Tensor, offsets: Tensor) -> None:
        live = left.count_nonzero(dim=1) > 0
        left, right = left[live], right[live]
        for dim, moments, factor in ((0, self.left, left), (1, self.right, right)):
            moment = factor.t() @ factor
            if isinstance(block, Lines) and block.dim == dim:
                moments[block.name][block.lines[:, None], block.lines] += moment
            else:
                moments[block.name] += moment
        self._counts[block.name] += len(left)

    def result(self) -> Tensor:
        return torch.tensor([self._counts[name] for name in self._order])
