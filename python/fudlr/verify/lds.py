"""How well predicted changes agree with those of real retraining, over many removals.

The linear datamodeling score (Park, Georgiev, Ilyas, Leclerc, Madry 2023, "TRAK", arXiv
2303.14186): removals R_1 … R_r of samples; predicted Σ_{i ∈ R_j} s_i; actual F(retrained without
R_j) − F(retrained with all). The score is their Spearman correlation; the slope, of the least
squares line of actual over predicted, says whether the size is right. Intervals are percentiles
over bootstrap resamples of the removals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from fudlr.errors import DataError, UsageError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Predicted against actual changes over removals, with 95% intervals.

    `ratio` is the sum of actual over the sum of predicted changes: what the slope does not see, a
    shift common to all removals.
    """

    removals: int
    spearman: float
    spearman_interval: tuple[float, float]
    slope: float
    slope_interval: tuple[float, float]
    ratio: float


def random_removals(n: int, count: int, share: float, seed: int) -> list[Tensor]:
    """Masks [n] that remove `share` of the samples at random."""
    size = _size(n, share)
    generator = torch.Generator().manual_seed(seed)
    return [_mask(n, torch.randperm(n, generator=generator)[:size]) for _ in range(count)]


def targeted_removals(influence: Tensor, count: int, share: float, seed: int) -> list[Tensor]:
    """Masks [n] of strong influence: of a random half of the samples, the lowest or the highest.

    Even ones remove those whose removal is predicted to lower the metric most, odd ones those that
    would raise it. A random half each, so that no two are alike.
    """
    n = influence.numel()
    size = _size(n, share)
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for j in range(count):
        half = torch.randperm(n, generator=generator)[: max(n // 2, size)]
        order = influence[half].argsort(descending=bool(j % 2), stable=True)
        masks.append(_mask(n, half[order[:size]]))
    return masks


def agreement(
    predicted: Sequence[Sequence[float]],
    actual: Sequence[Sequence[float]],
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Pool several models' removals: ranks and deviations are each model's own.

    Args:
        predicted: For each model (a training seed, say) the predicted changes.
        actual: What retraining gave.
        resamples: Bootstrap resamples; removals are drawn anew within each model.
        seed: Of the bootstrap.

    Raises:
        DataError: Fewer than three removals of a model, or predictions that are all the same.
    """
    pairs = [
        (np.asarray(p, dtype=float), np.asarray(a, dtype=float))
        for p, a in zip(predicted, actual, strict=True)
    ]
    if not pairs or any(len(p) != len(a) or len(p) < 3 or np.ptp(p) == 0 for p, a in pairs):
        raise DataError(
            "predicted changes were to be held against retraining",
            "there are fewer than three removals, or all predictions are the same",
            "Ask for more removals",
        )
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        picks = [random.integers(len(p), size=len(p)) for p, _ in pairs]
        again = [(p[i], a[i]) for (p, a), i in zip(pairs, picks, strict=True)]
        if all(np.ptp(p) > 0 and np.ptp(a) > 0 for p, a in again):
            drawn.append((_spearman(again), _slope(again)))
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    moved = sum(float(p.sum()) for p, _ in pairs)
    return Agreement(
        removals=sum(len(p) for p, _ in pairs),
        spearman=_spearman(pairs),
        spearman_interval=(float(low[0]), float(high[0])),
        slope=_slope(pairs),
        slope_interval=(float(low[1]), float(high[1])),
        ratio=sum(float(a.sum()) for _, a in pairs) / moved if moved else float("nan"),
    )


def _spearman(pairs: list[tuple[Floats, Floats]]) -> float:
    """Correlation of the ranks, centred within each model, over all models together."""
    centred = [(_centre(_ranks(p)), _centre(_ranks(a))) for p, a in pairs]
    both, left, right = (
        sum(float(x @ y) for x, y in products)
        for products in (
            centred,
            [(p, p) for p, _ in centred],
            [(a, a) for _, a in centred],
        )
    )
    return both / float(np.sqrt(left * right)) if left and right else 0.0


def _slope(pairs: list[tuple[Floats, Floats]]) -> float:
    centred = [(_centre(p), _centre(a)) for p, a in pairs]
    return sum(float(p @ a) for p, a in centred) / sum(float(p @ p) for p, _ in centred)


def _ranks(values: Floats) -> Floats:
    return pl.Series(values).rank("average").to_numpy()


def _centre(values: Floats) -> Floats:
    return values - values.mean()


def _mask(n: int, index: Tensor) -> Tensor:
    mask = torch.zeros(n)
    mask[index] = 1
    return mask


def _size(n: int, share: float) -> int:
    size = int(share * n + 1e-9)
    if not 0 < size < n:
        raise UsageError(
            f"a share of {share} of {n} samples was to be removed",
            f"that are {size} samples",
            "Remove at least one sample, and not all",
        )
    return size
