"""A request's mask in the next training: which rows are shown again.

Rows of weight 0 are left out. A loss that is divided by the rows that are left is then larger by
n / kept than the removal's, which divides by n: the same up to the learning rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler, Subset

from fudlr.common.errors import UsageError
from fudlr.data.named import places
from fudlr.report import load_report_data


def load_weights(result: Path | str, ids: Sequence[Any] | None = None) -> Tensor:
    """Weights of training samples by a result's mask, `[n]`: 1 kept, 0 taken out.

    Args:
        result: A folder that `fudlr debias` or `fudlr forget` wrote.
        ids: `sample_id` of each row of the next training; by default all, in the run's order.

    Raises:
        DataError: The result is damaged; or an id is unknown, which is named with the nearest.
    """
    data = load_report_data(Path(result))
    known = data.mask["sample_id"].to_list()
    weights = torch.tensor(data.weights(known).to_list())
    if ids is None:
        return weights
    return weights[torch.from_numpy(places(ids, known, "sample", f"the mask of {result}"))]


def keep(rows: Any, weights: Tensor) -> Any:
    """The rows of weight 1: for a `Trainer`'s `train_dataset`, or any loader.

    Args:
        rows: A Hugging Face `datasets.Dataset`, or anything with a length and items by number.
        weights: Of each row, `[n]`: `Result.weights`, or `load_weights`.

    Returns:
        `rows.select(...)` of a `datasets.Dataset`, a `Subset` of anything else.

    Raises:
        UsageError: As `KeptSampler`; or there is not one weight a row.
    """
    kept = _kept(weights, len(rows))
    return rows.select(kept) if hasattr(rows, "select") else Subset(rows, kept)


class KeptSampler(Sampler[int]):
    """Numbers of the rows of weight 1, each once an epoch, in another random order every time: for
    a `DataLoader(rows, sampler=KeptSampler(weights))`, whose rows keep their numbers.

    Args:
        weights: Of each row, `[n]`: `Result.weights`, or `load_weights`.
        seed: Of the orders.

    Raises:
        UsageError: All rows were taken out, or a weight is neither 0 nor 1.
    """

    def __init__(self, weights: Tensor, seed: int = 0) -> None:
        self.kept = _kept(weights, len(weights))
        self._draw = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.kept)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self.kept), generator=self._draw)
        return iter([self.kept[at] for at in order.tolist()])


def _kept(weights: Tensor, count: int) -> list[int]:
    asked = f"a training of {count} rows was to be given the weights of a mask"
    if weights.dim() != 1 or len(weights) != count:
        raise UsageError(
            asked,
            f"there are weights of the shape {tuple(weights.shape)}",
            "Give one a row, in the rows' order (`load_weights` takes their ids)",
        )
    if not bool(((weights == 0) | (weights == 1)).all()):
        raise UsageError(
            asked, "some are neither 0 nor 1", "Multiply each row's loss by its weight instead"
        )
    kept: list[int] = weights.nonzero()[:, 0].tolist()
    if not kept:
        raise UsageError(asked, "all of them are 0", "Take out fewer samples")
    return kept
