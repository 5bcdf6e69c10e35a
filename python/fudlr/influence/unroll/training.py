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

    @property
    def epochs(self) -> int:
        """How many they make up."""
        ...

    def mean(self, step: int) -> Tensor:
        """A step's gradient Σ u_i g_i `[d]`, from 0."""
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
        order: The samples' ids `[n]`; those of other samples are refused.

    Raises:
        DataError: The store is of the last epoch alone, or of samples that are not in `order`.
    """

    def __init__(self, store: Store, order: Tensor) -> None:
        asked = f"the training in the store {store.folder} was to be unrolled"
        if store.manifest.recipe is None:
            raise DataError(
                asked,
                "it has rows of the adapter alone, not of its training",
                "Train with record.epochs=all, or use the closed form (debias.update=closed_form)",
            )
        self._store, (self._ids, self._at) = store, order.sort()
        self._steps: dict[int, Step] = {}

    @property
    def kept(self) -> bool:
        """Whether the store is small enough to stay in memory."""
        return self._store.bytes <= KEPT_BYTES

    @property
    def count(self) -> int:
        """T, its steps."""
        return self._store.steps

    @property
    def epochs(self) -> int:
        """How many they make up."""
        return len(self._store.epochs.unique())

    def mean(self, step: int) -> Tensor:
        """A step's gradient Σ u_i g_i `[d]`, from 0."""
        return self._store.mean(step)

    def step(self, step: int) -> Step:
        """A step with its rows, of several ranks with this one's share of them."""
        if step in self._steps:
            return self._steps[step]
        here = ranks()
        own = None if here.size == 1 else here.part(int(self._store.counts[step]))
        found = self._store.step(step, own)
        at = torch.searchsorted(self._ids, found.ids).clamp(max=len(self._ids) - 1)
        absent = found.ids[self._ids[at] != found.ids]
        if len(absent):
            raise DataError(
                f"the training in the store {self._store.folder} was to be unrolled",
                f"it was of other samples too, {int(absent[0])} for one",
                "Ask for all samples of the training",
            )
        found = replace(found, ids=self._at[at])
        if self.kept:
            self._steps[step] = found
        return found

    def projection(self, segment: int) -> Projection | None:
        """What made a segment's rows."""
        return self._store.projection(segment)
