"""What a Trainer's batch is to a recorder: its samples, their label tokens, their losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from fudlr.common.errors import UsageError
from fudlr.gradients.store.batch_gradients import BatchGradients
from fudlr_ext.labels import IGNORED

COLUMN = "sample_id"
ASKED = "a Trainer's gradients were to be recorded"


class Numbered(Dataset[dict[str, Any]]):
    """A map-style data set whose samples also carry their position, in the column `column`.

    Args:
        samples: Anything with a length whose items are mappings, such as a `datasets.Dataset`.
        column: The column's name, as `RecorderCallback` is given it.
    """

    def __init__(self, samples: Any, column: str = COLUMN) -> None:
        self.samples = samples
        self.column = column

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.samples[index], self.column: int(index)}


@dataclass
class Batch:
    """A batch between its forward pass and the end of its backward pass."""

    ids: Tensor
    labels: Tensor
    counts: Tensor
    items: Tensor
    """Label tokens that the loss is divided by."""
    context: AbstractContextManager[BatchGradients] | None = None
    here: BatchGradients | None = None
    arrived: bool = False


def count_labels(ids: Any, inputs: Mapping[str, Any], column: str) -> Batch:
    """The batch of samples `ids` that the model is given in `inputs`.

    Raises:
        UsageError: There are no ids in `column`, no labels, or samples without one.
    """
    labels = inputs.get("labels")
    found = ""
    if not isinstance(ids, Tensor) or ids.dim() != 1 or ids.is_floating_point():
        found = f"the batch has no ids, one integer a sample, as {column!r}"
    elif not isinstance(labels, Tensor) or labels.dim() != 2 or len(labels) != len(ids):
        found = "the model was not given labels [n, t], a row for each id"
    elif "shift_labels" in inputs:
        found = "the batch brings its own shift_labels"
    else:
        counts = (labels[:, 1:] != IGNORED).sum(1)
        empty = ids[counts == 0].tolist()
        if not empty:
            items = inputs.get("num_items_in_batch")
            items = counts.sum() if items is None else torch.as_tensor(items)
            return Batch(ids, labels, counts.float(), items.to(counts.device).float())
        found = f"samples {empty[:5]} have no label"
    raise UsageError(
        ASKED,
        found,
        "Wrap the data set (Numbered) and a collator that drops columns (callback.collator), "
        "let the model compute its loss from labels, and leave out samples without any",
    )


class Carrying:
    """Takes a column away before a collator, and puts it into the batch after it."""

    def __init__(self, inner: Callable[[Sequence[Any]], Mapping[str, Any]], column: str) -> None:
        self.inner, self.column = inner, column

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        """The batch of `samples`, with their ids."""
        ids = torch.tensor([int(sample[self.column]) for sample in samples])
        rest = [{k: v for k, v in sample.items() if k != self.column} for sample in samples]
        return {**self.inner(rest), self.column: ids}


def sample_losses(logits: Tensor, batch: Batch) -> Tensor:
    """ℓ_i `[n]`, float32: the mean cross-entropy over a sample's label tokens."""
    targets = batch.labels[:, 1:]
    row, place = (targets != IGNORED).nonzero(as_tuple=True)
    each = cross_entropy(logits[row, place].float(), targets[row, place], reduction="none")
    return each.new_zeros(len(targets)).index_add_(0, row, each) / batch.counts
