"""A training as it was recorded: what the recursion asks of it, and a store that answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from fudlr.common.errors import DataError
from fudlr.common.parallel import ranks
from fudlr.gradients.projection import Projection
from fudlr.gradients.store import Store
from fudlr.gradients.store.reader import KEPT_BYTES
from fudlr.gradients.store.shards import Step


class Training(Protocol):
    """A recorded training."""

    @property
    def kept(self) -> bool:
        """Whether it is in memory, so that reading ahead saves nothing."""
        ...

    @property
    def count(self) -> int:
        """T, its steps."""
        ...

    def mean(self, step: int) -> Tensor:
        """A step's gradient Σ u_i g_i `[d]`, from 0."""
        ...

    def composition(self, step: int) -> tuple[Tensor, Tensor]:
        """A step's samples, as places 0 to n − 1, and their shares u_i of its gradient, `[b]`."""
        ...

    def step(self, step: int) -> Step:
        """A step with its rows; `ids` are places 0 to n − 1 among the samples."""
        ...

    def projection(self, segment: int) -> Projection | None:
        """What made a segment's rows; None where they are whole."""
        ...


class StoredTraining:
    """The training in a store, its samples numbered by their place in `order`.

    Args:
        store: Of a whole training.
        order: The samples' ids `[n]`; those of other samples are refused. The last epoch's,
            ascending, where None; nothing is held of them where they are 0 to n − 1.

    Raises:
        DataError: The store is of the last epoch alone, or of samples that are not in `order`.
    """

    def __init__(self, store: Store, order: Tensor | None = None) -> None:
        asked = f"the training in the store {store.folder} was to be unrolled"
        if store.manifest.recipe is None:
            raise DataError(
                asked,
                "it has rows of the adapter alone, not of its training",
                "Train with record.epochs=all, or use the closed form (debias.update=closed_form)",
            )
        self._store, self._steps = store, dict[int, Step]()
        if order is None and store.largest_id == store.n - 1:
            self._ids = self._at = None
        else:
            self._ids, self._at = (store.ids if order is None else order).sort()
        self.samples = store.n if order is None else len(order)

    @property
    def kept(self) -> bool:
        """Whether the store is small enough to stay in memory."""
        return self._store.bytes <= KEPT_BYTES

    @property
    def count(self) -> int:
        """T, its steps."""
        return self._store.steps

    def mean(self, step: int) -> Tensor:
        """A step's gradient Σ u_i g_i `[d]`, from 0."""
        return self._store.mean(step)

    def composition(self, step: int) -> tuple[Tensor, Tensor]:
        """A step's samples, and their shares of its gradient."""
        ids, shares = self._store.composition(step)
        return self._placed(ids), shares

    def step(self, step: int) -> Step:
        """A step with its rows, of several ranks with this one's share of them."""
        if step in self._steps:
            return self._steps[step]
        here = ranks()
        own = None if here.size == 1 else here.part(int(self._store.counts[step]))
        found = self._store.step(step, own)
        found = replace(found, ids=self._placed(found.ids))
        if self.kept:
            self._steps[step] = found
        return found

    def _placed(self, ids: Tensor) -> Tensor:
        """The places of samples."""
        if self._ids is None or self._at is None:
            absent, places = ids[ids >= self.samples], ids
        else:
            at = torch.searchsorted(self._ids, ids).clamp(max=len(self._ids) - 1)
            absent, places = ids[self._ids[at] != ids], self._at[at]
        if len(absent):
            raise DataError(
                f"the training in the store {self._store.folder} was to be unrolled",
                f"it was of other samples too, {int(absent[0])} for one",
                "Ask for all samples of the training",
            )
        return places

    def projection(self, segment: int) -> Projection | None:
        """What made a segment's rows."""
        return self._store.projection(segment)
