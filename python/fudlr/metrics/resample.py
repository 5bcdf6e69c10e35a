"""What chance alone does: bootstrap intervals over prompts, and groups permuted.

Both rest on metrics being functions of weighted sums over prompts (`SummedMetric`): a thousand
resamples are one matrix product a metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.metrics.attribute import GroupGap
from fudlr.metrics.base import Metric, Side, SummedMetric, top_k
from fudlr.metrics.evaluate import has_hard, measurable

CHUNK = 128  # resamples whose sums are held at a time


class Interval(NamedTuple):
    """A value and the bounds that hold 95% of its resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Null:
    """What a group metric is, and what it would be if groups meant nothing.

    Args:
        observed: with the groups as they are.
        mean: over permutations of the groups.
        low: 2.5% quantile of the permutations.
        high: 97.5% quantile.
        p_value: (1 + permutations at least as large) / (1 + permutations).
    """

    observed: float
    mean: float
    low: float
    high: float
    p_value: float


def _bounds(values: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(values, values.new_tensor([0.025, 0.975])).tolist()
    return low, high


def _multiplicities(n: int, n_resamples: int, seed: int) -> Tensor:
    """Draw how often each of n prompts is in each resample: [R, n] float64, rows sum to n."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (n_resamples, n), generator=generator)
    counts = torch.zeros(n_resamples, n, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def _resampled(
    metric: Metric, scores: Tensor, top: Tensor, side: Side, weights: Tensor
) -> dict[str, Tensor]:
    """Return a metric under each weighting [R, n], hard and, where it can be weighted, soft."""
    chunks = weights.split(CHUNK)
    if not isinstance(metric, SummedMetric):
        if not has_hard(metric):
            return {}
        hard = torch.stack([metric.hard(top, side, w).double() for w in weights])
        return {metric.hard_key(side.k): hard}
    hard = torch.cat([metric.hard_many(top, side, w) for w in chunks])
    rows = metric.soft_rows(scores, side)
    soft = [
        metric.soft_finish(w @ rows, w.sum(1), side) for w in weights.to(rows.dtype).split(CHUNK)
    ]
    return {metric.hard_key(side.k): hard, metric.soft_key: torch.cat(soft).double()}


@torch.no_grad()
def bootstrap(
    scores: Mapping[str, Tensor],
    side: Side,
    n_resamples: int = 1000,
    seed: int = 0,
    metrics: Iterable[Metric] | None = None,
) -> dict[str, dict[str, Interval]]:
    """Resample the prompts, the same for all models, so that differences are paired.

    Args:
        scores: models' names to their scores [n, M] on the same prompts.
        side: of these prompts.
        n_resamples: R.
        seed: the same seed draws the same resamples.
        metrics: which; all that `side` allows by default.

    Returns:
        For each model, and for each later model's difference to the first as `"b - a"`, metric
        name to interval (percentile bootstrap, 95%). The group gaps are biased upwards by
        resampling; read their differences.

    Raises:
        UsageError: no prompts or no resamples, or as `top_k`.
    """
    n = len(side.target)
    if n < 2 or n_resamples < 1:
        raise UsageError(
            f"{n_resamples} bootstrap resamples of {n} prompts were asked for",
            "that leaves nothing to draw",
            "Give at least 1 resample of at least 2 prompts",
        )
    chosen = measurable(side, metrics)
    # The first weighting is the sample as it is: it gives the values.
    once = torch.ones(1, n, dtype=torch.float64)
    weights = torch.cat([once, _multiplicities(n, n_resamples, seed)]).to(side.target.device)
    draws: dict[str, dict[str, Tensor]] = {}
    for name, matrix in scores.items():
        top = top_k(matrix, side)
        draws[name] = {}
        for metric in chosen:
            draws[name] |= _resampled(metric, matrix, top, side, weights)
    first = next(iter(draws))
    for name in [name for name in draws if name != first]:
        pairs = {key: draws[name][key] - draws[first][key] for key in draws[first]}
        draws[f"{name} - {first}"] = pairs
    return {
        name: {key: Interval(float(v[0]), *_bounds(v[1:])) for key, v in values.items()}
        for name, values in draws.items()
    }


def _permuted(metric: GroupGap, features: Tensor, side: Side, groups: Tensor) -> Tensor:
    """Return the gap under each assignment of groups [P, n]: [P]."""
    codes = torch.arange(side.n_groups, device=groups.device)
    gaps = []
    for chunk in groups.split(CHUNK):
        member = (chunk[:, None, :] == codes[:, None]).to(features.dtype)
        weight = member.sum(2)
        means = (member @ features) / weight.clamp_min(1e-30)[:, :, None]
        gaps.append(metric.gap(means, weight > 0))
    return torch.cat(gaps)


@torch.no_grad()
def permutation_null(
    scores: Tensor,
    side: Side,
    n_permutations: int = 1000,
    seed: int = 0,
    metrics: Iterable[Metric] | None = None,
) -> dict[str, Null]:
    """Compare each gap between user groups with what permuted groups give.

    Groups are permuted among the prompts that have one, so their sizes stay. With several prompts a
    user, a user's prompts are no longer kept together, and p-values come out too small.

    Returns:
        Metric name, hard and soft, to its null; empty without groups.

    Raises:
        UsageError: no permutations, or as `top_k`.
    """
    if n_permutations < 1:
        raise UsageError(f"{n_permutations} permutations", "that is none", "Ask for at least 1")
    chosen = [m for m in measurable(side, metrics) if isinstance(m, GroupGap)]
    if not chosen:
        return {}
    top = top_k(scores, side)
    kept = (side.user_group >= 0).nonzero()[:, 0]
    own = side.user_group[kept]
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(n_permutations, len(own), generator=generator).argsort(1).to(own.device)
    groups = torch.cat([own[None], own[order]])
    result: dict[str, Null] = {}
    for metric in chosen:
        features = {
            metric.hard_key(side.k): metric.hard_features(top, side),
            metric.soft_key: metric.soft_features(scores, side).double(),
        }
        for key, rows in features.items():
            gaps = _permuted(metric, rows[kept], side, groups)
            observed, null = gaps[0], gaps[1:]
            # A permutation that only renames equal groups gives the same gap up to rounding.
            as_large = int((null >= observed * (1 - 1e-9)).sum())
            p_value = (1 + as_large) / (1 + n_permutations)
            result[key] = Null(float(observed), float(null.mean()), *_bounds(null), p_value)
    return result
