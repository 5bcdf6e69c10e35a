"""Whether the next item is found: HR@K, NDCG@K, MRR@K for one target a prompt.

The surrogates have no K, so they are never written under the metrics' own names; those of NDCG and
MRR put a smooth rank in the place of the rank: Qin, Liu, Li, "A general approximation framework for
direct optimization of information retrieval measures" (2010).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.metrics.base import MeanMetric, Side, catalogue_softmax


def hits(top: Tensor, side: Side) -> Tensor:
    """Return where in the list the target stands: [n, K] bool, at most one in a row."""
    return top == side.target[:, None]


def target_probability(scores: Tensor, side: Side) -> Tensor:
    """Return the target's probability under the catalogue softmax: [n, 1]."""
    return catalogue_softmax(scores, side.seen).gather(1, side.target[:, None])


def smooth_rank(scores: Tensor, side: Side) -> Tensor:
    """Return 1 + Σ_j σ(s_j - s_target) over the other unseen items: [n, 1]."""
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()
    target = side.target[:, None]
    ahead = torch.sigmoid(scores - scores.gather(1, target))
    others = (~side.seen).scatter(1, target, False)
    return 1 + torch.where(others, ahead, 0.0).sum(1, keepdim=True)


def _gain(top: Tensor, side: Side, gain: Tensor) -> Tensor:
    return hits(top, side).double() @ gain.to(top.device)[:, None]


class HitRate(MeanMetric):
    """HR@K: share of prompts whose target is in the list; softly, the target's probability."""

    name = "hr"
    lower_is_better = False
    at_k = True
    bounds = (0.0, 1.0)

    def hard_rows(self, top: Tensor, side: Side) -> Tensor:
        """Return 1 for a hit."""
        return _gain(top, side, torch.ones(side.k, dtype=torch.float64))

    def soft_rows(self, scores: Tensor, side: Side) -> Tensor:
        """Return the target's probability."""
        return target_probability(scores, side)


class NDCG(MeanMetric):
    """NDCG@K: mean of 1 / log₂(1 + rank), 0 beyond K; softly, with the smooth rank."""

    name = "ndcg"
    lower_is_better = False
    at_k = True
    bounds = (0.0, 1.0)

    def hard_rows(self, top: Tensor, side: Side) -> Tensor:
        """Return the discount at the target's rank."""
        rank = torch.arange(1, side.k + 1, dtype=torch.float64)
        return _gain(top, side, 1 / torch.log2(1 + rank))

    def soft_rows(self, scores: Tensor, side: Side) -> Tensor:
        """Return the discount at the smooth rank."""
        return 1 / torch.log2(1 + smooth_rank(scores, side))


class MRR(MeanMetric):
    """MRR@K: mean of 1 / rank, 0 beyond K; softly, with the smooth rank."""

    name = "mrr"
    lower_is_better = False
    at_k = True
    bounds = (0.0, 1.0)

    def hard_rows(self, top: Tensor, side: Side) -> Tensor:
        """Return the reciprocal of the target's rank."""
        return _gain(top, side, 1 / torch.arange(1, side.k + 1, dtype=torch.float64))

    def soft_rows(self, scores: Tensor, side: Side) -> Tensor:
        """Return the reciprocal of the smooth rank."""
        return 1 / smooth_rank(scores, side)
