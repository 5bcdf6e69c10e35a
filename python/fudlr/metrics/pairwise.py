"""Pairwise accuracy over the items that a prompt chooses from: how often the target comes first.

    AUC = mean over prompts of the share of other unseen items that score below the target

(ties count one half), and its gaps between head and tail targets and between groups of users:
Beutel et al. 2019, "Fairness in recommendation ranking through pairwise comparisons", arXiv
1903.00780. They need scores, not lists, so they are figures beside the metrics of the table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.metrics.base import Side

DIRECTIONS = {"auc": "higher", "auc_tail_gap": "lower", "auc_group_gap": "lower"}


def pairwise_rows(scores: Tensor, side: Side) -> Tensor:
    """Each prompt's share of other unseen items below its target, [n]; 1/2 where there is none."""
    parts = [_rows(scores[part], tile) for part, tile in side.tiles()]
    return torch.cat(parts) if parts else scores.new_zeros(0, dtype=torch.float64)


def _rows(scores: Tensor, side: Side) -> Tensor:
    target = side.target[:, None]
    own = scores.gather(1, target)
    others = (~side.seen).scatter(1, target, False)
    below = (scores < own).double() + 0.5 * (scores == own).double()
    count = others.sum(1)
    shares = (below * others).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, shares, 0.5)


def pairwise(scores: Tensor, side: Side) -> dict[str, float]:
    """`auc`; `auc_tail_gap`, head targets' less tail targets'; `auc_group_gap`, the largest
    difference between groups of users. Gaps are left out where one side has no prompt.
    """
    rows = pairwise_rows(scores, side)
    found = {"auc": float(rows.mean())}
    tail = side.tail[side.target]
    if bool(tail.any()) and not bool(tail.all()):
        found["auc_tail_gap"] = abs(float(rows[~tail].mean() - rows[tail].mean()))
    groups = [rows[side.user_group == g] for g in range(side.n_groups)]
    means = [float(group.mean()) for group in groups if len(group)]
    if len(means) > 1:
        found["auc_group_gap"] = max(means) - min(means)
    return found
