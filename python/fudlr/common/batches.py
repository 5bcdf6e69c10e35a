"""Batches of samples in a fixed order, with the number of samples in each; or of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fudlr.common.digest import digest
from fudlr.common.errors import UsageError

Source = Sequence[Any] | Callable[[], Iterable[Any]]


class Batches:
    """Batches that can be gone through again and again, always in the same order.

    Args:
        source: A sequence of batches, or a callable that makes them anew on each pass, so that
            only one has to be in memory.
        sizes: Samples in each batch. Without it, a batch's size is the length of its first
            tensor, which is found out with one pass through `source`.
    """

    def __init__(self, source: Source, sizes: Sequence[int] | None = None) -> None:
        self._source = source
        self._sizes = None if sizes is None else [int(size) for size in sizes]
        self._first: str | None = None  # digest of the first batch, as the first pass had it

    @classmethod
    def of(cls, source: Batches | Source) -> Batches:
        """`source` itself where it is a `Batches` already."""
        return source if isinstance(source, Batches) else cls(source)

    @property
    def sizes(self) -> list[int]:
        """Samples in each batch."""
        if self._sizes is None:
            self._sizes = [batch_length(batch) for batch in self._all()]
        return self._sizes

    @property
    def n(self) -> int:
        """Samples in all batches."""
        return sum(self.sizes)

    def __iter__(self) -> Iterator[tuple[Any, slice]]:
        """Yield each batch with the slice of the samples that it holds.

        Raises:
            UsageError: A pass gave fewer or more batches than there are sizes, or another first
                batch than the pass before, as a shuffled loader does.
        """
        start, sizes, seen = 0, self.sizes, 0
        for batch in self._all():
            if seen < len(sizes):
                yield batch, slice(start, start + sizes[seen])
                start += sizes[seen]
            seen += 1
        if seen != len(sizes):
            raise UsageError(
                "every pass over the samples was to give the same batches",
                f"this one gave {seen} batches, and {len(sizes)} were expected",
                "Give a sequence, or a callable that starts a fresh iterator on each call",
            )

    def _all(self) -> Iterator[Any]:
        made = self._source() if callable(self._source) else self._source
        for number, batch in enumerate(made):
            if number == 0 and not isinstance(made, (list, tuple)):
                self._check_first(batch)
            yield batch

    def _check_first(self, batch: Any) -> None:
        found = digest(*_tensors(batch))
        if self._first not in (None, found):
            raise UsageError(
                "every pass over the samples was to give the same batches",
                "this one began with another batch than the pass before",
                "Give the samples in a fixed order (a DataLoader with shuffle=False)",
            )
        self._first = found


def batch_length(batch: Any) -> int:
    """Number of samples in `batch`: the length of the first tensor found in it."""
    tensor = next(_tensors(batch), None)
    if tensor is None or tensor.dim() == 0:
        raise UsageError(
            "the samples of a batch were to be counted",
            f"a {type(batch).__name__} without a tensor that has a first dimension",
            "Hand the numbers over: Batches(source, sizes=[...])",
        )
    return tensor.shape[0]


def _tensors(batch: Any) -> Iterator[Tensor]:
    """All tensors in `batch`, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from _tensors(list(batch.values()))
    elif isinstance(batch, (list, tuple)):
        for part in batch:
            yield from _tensors(part)


ENGINE_TOKENS = 2048
"""Tokens that go through the engine at a time: more take memory, fewer merge weights more often."""


def engine_batches(lengths: Tensor | None, n: int, most: int | None = None) -> list[Tensor]:
    """Indices of n samples, as many at a time as go through the engine; `most` where their
    `lengths` `[n]` are not known, or all."""
    if lengths is None or not n:
        return list(torch.arange(n).split(most or n)) if n else []
    return token_batches(lengths, max(int(lengths.max()), ENGINE_TOKENS))


def token_batches(
    lengths: Tensor | Sequence[int], budget: int, most: int | None = None
) -> list[Tensor]:
    """Samples of like length together, so that hardly any padding is paid for.

    A batch is padded to its longest sample; with that it has no more than `budget` tokens.

    Args:
        lengths: Tokens of every sample, `[n]`, 0 or more.
        budget: Most tokens of a batch, padding included.
        most: Most samples of a batch; any number where None.

    Returns:
        int64 indices of each batch's samples, the longest first: memory that does not suffice is
        missed at the start. Every sample is in one of them; the same on every call.

    Raises:
        UsageError: A length below 0, a budget below 1 or below the longest sample, `most` below 1.
    """
    found = torch.as_tensor(lengths, dtype=torch.int64)
    asked = f"{found.numel()} samples were to be batched with at most {budget} tokens a batch"
    if found.dim() != 1 or bool((found < 0).any()):
        raise UsageError(asked, "lengths that are no list of numbers from 0 on", "Count tokens")
    if budget < 1 or (most is not None and most < 1):
        limit = f"{budget} tokens" if budget < 1 else f"{most} samples"
        raise UsageError(asked, f"no sample fits into {limit}", "Give a number from 1 on")
    order = torch.sort(found, descending=True, stable=True).indices
    longest = int(found.max()) if len(found) else 0
    if longest > budget:
        raise UsageError(
            asked,
            f"sample {int(order[0])} alone has {longest}",
            f"Raise the budget to {longest} or more, or shorten the prompts",
        )
    batches, start = [], 0
    while start < len(order):
        room = budget // max(int(found[order[start]]), 1)
        room = room if most is None else min(room, most)
        batches.append(order[start : start + room])
        start += room
    return batches
