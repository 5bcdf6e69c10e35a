"""Whether the next item is found: HR@K, NDCG@K, MRR@K for one target a prompt.

The surrogates have no K, so they are never written under the metrics' own names; those of NDCG and
MRR put a smooth rank in the place of the rank: Qin, Liu, Li, "A general approximation framework for
direct optimization of information retrieval measures" (2010).

Pairwise accuracy over the items that a prompt chooses from is how often the target comes first:

    AUC = mean over prompts of the share of other unseen items that score below the target

(ties count one half), with its gaps between head and tail targets and between groups of users:
Beutel et al. 2019, "Fairness in recommendation ranking through pairwise comparisons", arXiv
1903.00780. They need scores, not lists, so they are figures beside the metrics of the table.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fudlr.common.factors import Factors, Scores
from fudlr.metrics.base import SummedMetric
from fudlr.metrics.pointwise import Function, over_items
from fudlr.metrics.scores import ROUNDING, by_tiles, probability, sizes, target_score
from fudlr.metrics.side import Seen, Side, unseen_items


def hit(top: Tensor, side: Side) -> Tensor:
    """Return 1 where the target is in the list: [n, 1] float64."""
    return (top == side.target[:, None]).any(1, keepdim=True).double()


def smooth_rank(scores: Scores, side: Side) -> Tensor:
    """Return 1 + Σ_j σ(s_j - s_target) over the other unseen items: [n, 1]."""
    if isinstance(scores, Factors):
        if scores.link is not None:
            return by_tiles(smooth_rank, scores, side)
        given = scores
        return 1 + given.once("rank", side, lambda: _others(torch.sigmoid, given, side))
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()
    ahead = torch.sigmoid(scores - scores.gather(1, side.target[:, None]))
    # The target itself is one of the sum, with one half.
    return 0.5 + ahead.masked_fill(side.mask, 0.0).sum(1, keepdim=True)


def _others(of: Function, scores: Factors, side: Side) -> Tensor:
    """Σ_j f(s_j - s_target) over the other unseen items: [n, 1] float64."""
    seen = Seen(*side.lists, side.shape[1]).with_one(side.target)
    ones = scores.users.new_ones(side.shape[1], 1)
    return over_items(of, scores, seen, target_score(scores, side), ones)


def _ranked(name: str, gain: Callable[[Tensor], Tensor]) -> SummedMetric:
    """The mean of gain(rank), 0 beyond K; softly, with the smooth rank."""

    def hard(top: Tensor, side: Side) -> Tensor:
        rank = torch.arange(1, side.k + 1, dtype=torch.float64, device=top.device)
        return (top == side.target[:, None]).double() @ gain(rank)[:, None]

    def soft(scores: Scores, side: Side) -> Tensor:
        return gain(smooth_rank(scores, side))

    return SummedMetric(name, hard, soft, lower_is_better=False, at_k=True, factored=True)


HIT_RATE = SummedMetric("hr", hit, probability, lower_is_better=False, at_k=True, factored=True)
"""HR@K: share of prompts whose target is in the list; softly, the target's probability."""
NDCG = _ranked("ndcg", lambda rank: 1 / torch.log2(1 + rank))
"""NDCG@K: mean of 1 / log₂(1 + rank)."""
MRR = _ranked("mrr", lambda rank: 1 / rank)
"""MRR@K: mean of 1 / rank."""

DIRECTIONS = {"auc": "higher", "auc_tail_gap": "lower", "auc_group_gap": "lower"}


def _below(scores: Scores, side: Side) -> Tensor:
    """Each prompt's share of other unseen items below its target, [n]; 1/2 where there is none."""
    others = unseen_items(side.seen) - 1
    if isinstance(scores, Tensor):
        above = (scores - scores.gather(1, side.target[:, None])).sign().masked_fill(side.mask, 0)
        ahead = above.sum(1, dtype=torch.promote_types(above.dtype, torch.float32)).double()
    elif scores.link is not None:
        return by_tiles(_below, scores, side)
    else:
        # Equal are those that differ by rounding. A hidden item counts as below.
        unit = ROUNDING * float(sizes(scores).amax())
        ahead = _others(lambda away: (away / unit).trunc().sign(), scores, side)[:, 0]
        ahead = ahead + (side.shape[1] - others)
    return 0.5 - ahead / (2 * others.clamp(min=1))


def pairwise(scores: Scores, side: Side) -> dict[str, float]:
    """Pairwise accuracy, and its gaps where both sides have prompts.

    `auc`; `auc_tail_gap`, head targets' less tail targets'; `auc_group_gap`, the largest difference
    between groups of users.
    """
    if isinstance(scores, Factors):
        rows = _below(scores, side)
    else:
        rows = torch.cat([_below(scores[part], tile) for part, tile in side.tiles()])
    found = {"auc": float(rows.mean())}
    tail = side.tail[side.target]
    if bool(tail.any()) and not bool(tail.all()):
        found["auc_tail_gap"] = abs(float(rows[~tail].mean() - rows[tail].mean()))
    groups = [rows[side.user_group == g] for g in range(side.n_groups)]
    means = [float(group.mean()) for group in groups if len(group)]
    if len(means) > 1:
        found["auc_group_gap"] = max(means) - min(means)
    return found
