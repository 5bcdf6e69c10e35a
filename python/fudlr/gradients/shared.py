"""Rows of several ranks as one matrix: each holds some, products are summed over the ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.common.parallel import Ranks, ranks
from fudlr.gradients.matrix import GradientMatrix


def shared(
    lay: Callable[[], Tensor], n: int, make: Callable[[Tensor], GradientMatrix]
) -> GradientMatrix:
    """All n rows, this rank's share of them made here; all where it is alone.

    Args:
        lay: Gives the rows' places `[n]`, in the order in which they are shared out.
        n: Rows.
        make: The rows at some index, in its order.

    Raises:
        UsageError: There are more ranks than rows.
    """
    here = ranks()
    if here.size == 1:
        return make(torch.arange(n))
    if n < here.size:
        raise UsageError(
            f"{n} rows of gradients were to be shared by {here.size} processes",
            "some would have none",
            "Start fewer processes",
        )
    own = lay()[here.part(n)].sort().values
    return SharedRows(make(own), own, n, here)


class SharedRows(GradientMatrix):
    """Rows of which this rank holds those at `index`.

    A product costs a sum over the ranks of what it gives: `[n, k]` for `dots`, `[k, d]` for the
    others.
    """

    def __init__(self, rows: GradientMatrix, index: Tensor, n: int, here: Ranks) -> None:
        self._rows, self._index, self._here = rows, index, here
        self.n, self.d = n, rows.d

    def _dots(self, vectors: Tensor) -> Tensor:
        out = vectors.new_zeros(self.n, len(vectors))
        out[self._index] = self._rows.dots(vectors)
        self._here.sum(out)
        return out

    def _sum(self, weights: Tensor) -> Tensor:
        out = self._rows.sum(weights[:, self._index].contiguous())
        self._here.sum(out)
        return out

    def _gram(self, vectors: Tensor, weights: Tensor | None) -> Tensor:
        own = None if weights is None else weights[self._index]
        out = self._rows.gram_product(vectors, own) * self._rows.n
        self._here.sum(out)
        return out

    def take(self, index: Tensor) -> Tensor:
        """The rows at `index` `[m]`, `[m, d]`, on every rank."""
        places = torch.full((self.n,), -1)
        places[self._index] = torch.arange(len(self._index))
        at = places[index]
        found = self._rows.take(at[at >= 0])  # type: ignore[attr-defined]
        out = found.new_zeros(len(index), self.d)
        out[at >= 0] = found
        self._here.sum(out)
        return out
