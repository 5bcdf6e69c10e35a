"""A store's last epoch as a `GradientMatrix`: products streamed from disk in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.gradients.matrix import GradientMatrix, MemoryRows
from fudlr.gradients.store.reader import WINDOW_BYTES, Window, read_ahead
from fudlr_ext.ops import row_dots, row_gram, row_sums


class Source(Protocol):
    """Rows on disk: a `Store`, or another library's."""

    n: int
    dim: int

    @property
    def ids(self) -> Tensor:
        """The samples' names `[n]`."""
        ...

    def windows(self, window_bytes: int = ...) -> Iterator[Window]:
        """All rows in the order in which they lie."""
        ...

    def places(self, ids: Tensor) -> Tensor:
        """Where the samples `ids` lie."""
        ...

    def read(self, ids: Tensor) -> Tensor:
        """Their rows as float32."""
        ...


class StoredRows(GradientMatrix):
    """Rows of a store in the order that `order` says, read in the order in which they lie.

    A window is read while the one before is multiplied: peak memory is a few windows and the
    products themselves, whatever the store's size. Products are computed in float32 (summed in
    float64 across tiles of rows) and have their argument's dtype.

    Args:
        store: Where the rows are.
        order: Sample ids, `[n]`: row i of G is the gradient of `order[i]`. Rows of other samples
            are left out. By default all, in ascending order of id.
        window_bytes: Bytes of rows read at once.

    Raises:
        StoreError: Not all of `order` is stored, or a sample twice.
        UsageError: `order` names a sample twice.
    """

    def __init__(
        self, store: Source, order: Tensor | None = None, *, window_bytes: int = WINDOW_BYTES
    ) -> None:
        order = store.ids.sort().values if order is None else order.detach().to("cpu", torch.int64)
        if order.unique().numel() != order.numel():
            raise UsageError(
                "an order of samples was to be set",
                f"{order.numel() - order.unique().numel()} of {order.numel()} ids are repeated",
                "Name each sample once",
            )
        self.store, self.order = store, order
        self.n, self.d = order.numel(), store.dim
        self._window_bytes = window_bytes
        self._position: Tensor | None = None  # row i of the store is row i here
        if not torch.equal(order, store.ids):
            self._position = torch.full((store.n,), -1, dtype=torch.int64)
            self._position[store.places(order)] = torch.arange(order.numel())

    def _dots(self, vectors: Tensor) -> Tensor:
        out = torch.empty(self.n, vectors.shape[0])
        small = vectors.float().contiguous()
        for position, rows, scales in self._parts():
            here, dots = position >= 0, row_dots(rows, small, scales)
            if self._position is None:  # rows that lie one after the other
                out[int(position[0]) : int(position[-1]) + 1] = dots
            else:
                out[position[here]] = dots[here]
        return out.to(vectors.dtype)

    def _sum(self, weights: Tensor) -> Tensor:
        sums = torch.zeros(len(weights), self.d, dtype=torch.float64)
        for position, rows, scales in self._parts(weights):
            sums += row_sums(rows, _spread(weights, position), scales)
        return sums.to(weights.dtype)

    def _gram(self, vectors: Tensor, weights: Tensor | None) -> Tensor:
        given = torch.ones(1, self.n) if weights is None else weights[None]
        small = vectors.float().contiguous()
        sums = torch.zeros(len(vectors), self.d, dtype=torch.float64)
        for position, rows, scales in self._parts(given):
            sums += row_gram(rows, small, _spread(given, position)[0], scales)[1]
        return sums.to(vectors.dtype)

    def take(self, index: Tensor) -> Tensor:
        """The rows at `index` `[m]` as float32, `[m, p]`."""
        return self.store.read(self.order[index])

    def load(self) -> MemoryRows:
        """All rows as one float32 matrix in memory, for a store that is small."""
        return MemoryRows(self.store.read(self.order))

    def _at(self, window: Window) -> Tensor:
        """Which rows the window's are, `[b]`, -1 for those that are left out."""
        if self._position is None:
            return torch.arange(window.places.start, window.places.stop)
        return self._position[window.places]

    def _parts(
        self, weights: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Position, rows and scales of the windows, those without a weight left out."""
        wanted = []
        for window in self.store.windows(self._window_bytes):
            position = self._at(window)
            here = position[position >= 0]
            if here.numel() and (weights is None or weights[:, here].count_nonzero()):
                wanted.append(window)
        ready = read_ahead(window.read for window in wanted)
        for window, (rows, scales) in zip(wanted, ready, strict=True):
            yield self._at(window), rows, scales


def _spread(weights: Tensor, position: Tensor) -> Tensor:
    """Weights `[w, n]` of a window's rows, 0 for those that are left out, `[w, b]` float32."""
    return torch.where(position >= 0, weights[:, position.clamp(min=0)].float(), 0.0)
