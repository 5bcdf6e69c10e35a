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
import torch
from numpy.typing import NDArray
from torch import Tensor

from fudlr.common.errors import DataError, UsageError

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
    picks = [[random.integers(len(p), size=len(p)) for p, _ in pairs] for _ in range(resamples)]
    spearman, slope, usable = _statistics(
        pairs, [np.array(each) for each in zip(*picks, strict=True)]
    )
    drawn = np.stack([spearman, slope])[:, usable]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    whole = _statistics(pairs, [np.arange(len(p))[None] for p, _ in pairs])
    moved = sum(float(p.sum()) for p, _ in pairs)
    return Agreement(
        removals=sum(len(p) for p, _ in pairs),
        spearman=float(whole[0][0]),
        spearman_interval=(float(low[0]), float(high[0])),
        slope=float(whole[1][0]),
        slope_interval=(float(low[1]), float(high[1])),
        ratio=sum(float(a.sum()) for _, a in pairs) / moved if moved else float("nan"),
    )


def _statistics(
    pairs: Sequence[tuple[Floats, Floats]], picks: Sequence[NDArray[np.int64]]
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Spearman's correlation and the slope of R resamples, [R] each, and which of them have both.

    Ranks and values are centred within each model, and their products added over all models.

    Args:
        pairs: For each model p and a [r].
        picks: For each model what the resamples are made of, [R, r].
    """
    resamples = len(picks[0])
    ranks, values = np.zeros((3, resamples)), np.zeros((3, resamples))
    usable = np.ones(resamples, dtype=bool)
    for (p, a), index in zip(pairs, picks, strict=True):
        usable &= (np.ptp(p[index], axis=1) > 0) & (np.ptp(a[index], axis=1) > 0)
        ranks += _products(_ranks(p, index), _ranks(a, index))
        values += _products(p[index], a[index])
    scale = np.sqrt(ranks[1] * ranks[2])
    spearman = np.divide(ranks[0], scale, out=np.zeros(resamples), where=scale > 0)
    slope = np.divide(values[0], values[1], out=np.zeros(resamples), where=values[1] > 0)
    return spearman, slope, usable


def _products(x: Floats, y: Floats) -> Floats:
    """Σ x y, Σ x² and Σ y² of centred rows, [3, R]."""
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    return np.stack([(x * y).sum(1), (x * x).sum(1), (y * y).sum(1)])


def _ranks(values: Floats, index: NDArray[np.int64]) -> Floats:
    """The mean rank of each of `values[index]` in its row, [R, r], without sorting any row."""
    distinct, place = np.unique(values, return_inverse=True)
    places = place[index]
    rows = np.arange(len(index))[:, None] * len(distinct)
    counts = np.bincount((rows + places).ravel(), minlength=len(index) * len(distinct))
    counts = counts.reshape(len(index), len(distinct))
    ranks = counts.cumsum(1) - counts + (counts + 1) / 2
    return np.take_along_axis(ranks, places, 1)


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
