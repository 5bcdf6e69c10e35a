"""A store's rows as `GradientRows`: products streamed from disk in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.gradients.store.encoding import decode
from fudlr.gradients.store.errors import StoreError
from fudlr.gradients.store.ids import ascending, rising
from fudlr.gradients.store.products import block_products
from fudlr.gradients.store.reader import WINDOW_BYTES, Store, Window, read_ahead
from fudlr.gradients.store.rows import MemoryRows, check_columns


class StoredRows:
    """Rows of a store in the order that `order` says, read in the order in which they lie.

    A window is read while the one before is multiplied: peak memory is a few windows and the
    products themselves, whatever the store's size. Products are computed in float32 (summed in
    float64 across tiles of rows) and have their argument's dtype.

    Args:
        store: Where the rows are.
        order: Sample ids, `[n]`: row i of G is the gradient of `order[i]`. Rows of other samples
            are left out. By default all, in ascending order of id.
        window_bytes: Bytes of rows mapped at once.

    Raises:
        StoreError: Nothing is stored, or not all of `order` is.
        UsageError: `order` names a sample twice.
    """

    def __init__(
        self, store: Store, order: Tensor | None = None, *, window_bytes: int = WINDOW_BYTES
    ) -> None:
        if store.n == 0:
            raise StoreError(
                f"rows of the store {store.folder} were to be used",
                "it has none",
                "Record some samples first",
            )
        order = ascending(store.ids) if order is None else order.detach().to("cpu", torch.int64)
        if not rising(order) and order.unique().numel() != order.numel():
            raise UsageError(
                "an order of samples was to be set",
                f"{order.numel() - order.unique().numel()} of {order.numel()} ids are repeated",
                "Name each sample once",
            )
        self.store = store
        self.order = order
        self._window_bytes = window_bytes
        self._position: Tensor | None = None  # row i of the store is row i here
        if not torch.equal(order, store.ids):
            self._position = torch.full((store.n,), -1, dtype=torch.int64)
            self._position[store.places(order)] = torch.arange(order.numel())

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.order.numel()

    @property
    def d(self) -> int:
        """Numbers in a row: the sketch's dimension p."""
        return self.store.dim

    def dots(self, vectors: Tensor) -> Tensor:
        """G Vᵀ, `[n, k]`, for `vectors` V `[k, p]`."""
        check_columns(vectors, self.d, "vectors", "d")
        out = torch.empty(self.n, vectors.shape[0])
        self._pass(vectors.float().contiguous(), None, out)
        return out.to(vectors.dtype)

    def sum(self, weights: Tensor) -> Tensor:
        """Σ_i w_i g_i, `[w, p]`, for `weights` `[w, n]`; windows of zero weight are not read."""
        check_columns(weights, self.n, "weights", "n")
        return self._pass(None, weights.float(), None).to(weights.dtype)

    def gram_product(self, vectors: Tensor, weights: Tensor | None = None) -> Tensor:
        """V Gᵀ diag(w) G / n, `[k, p]`, for `vectors` `[k, p]`; `weights` `[n]` or ones.

        Every row is read once.
        """
        check_columns(vectors, self.d, "vectors", "d")
        if weights is None:
            weights = torch.ones(self.n)
        check_columns(weights[None], self.n, "weights", "n")
        sums = self._pass(vectors.float().contiguous(), weights[None].float(), None)
        return (sums / self.n).to(vectors.dtype)

    def take(self, index: Tensor) -> Tensor:
        """The rows at `index` `[m]` as float32, `[m, p]`."""
        return self.store.read(self.order[index])

    def load(self) -> MemoryRows:
        """All rows as one float32 matrix in memory, for a store that is small."""
        matrix = torch.empty(self.n, self.d)
        for window, rows, scales in read_ahead(self._windows()):
            position = self._at(window)
            here = (position >= 0).nonzero().flatten()
            matrix[position[here]] = decode(rows[here], None if scales is None else scales[here])
        return MemoryRows(matrix)

    def _at(self, window: Window) -> Tensor:
        """Which rows the window's are, `[b]`, -1 for those that are left out."""
        if self._position is None:
            return torch.arange(window.places.start, window.places.stop)
        return self._position[window.places]

    def _pass(self, vectors: Tensor | None, weights: Tensor | None, dots: Tensor | None) -> Tensor:
        """One pass over the store: fills `dots` `[n, k]`, returns the sums `[w or k, p]`."""
        lines = vectors if vectors is not None else weights
        assert lines is not None
        sums = torch.zeros(lines.shape[0], self.d, dtype=torch.float64)
        for window, rows, scales in read_ahead(self._windows(weights)):
            position = self._at(window)
            here = position >= 0
            part = None
            if weights is not None:
                part = torch.where(here, weights[:, position.clamp(min=0)], 0.0)
            found, total = block_products(rows, scales, vectors, part)
            if dots is not None and found is not None:
                dots[position[here]] = found[here]
            if total is not None:
                sums += total
        return sums

    def _windows(self, weights: Tensor | None = None) -> Iterator[Window]:
        """Those with a row of the order that has a weight, if there are weights."""
        for window in self.store.windows(self._window_bytes):
            position = self._at(window)
            position = position[position >= 0]
            if position.numel() and (weights is None or weights[:, position].count_nonzero()):
                yield window
