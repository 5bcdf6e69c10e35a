"""Rivals that re-rank the trained adapter's scores.

**Popularity penalty**: s − β log(1 + φ).

**xQuAD**: greedy lists that mix relevance with covering head and tail as the user's history does,

    pick argmax (1 − λ) P(v|u) + λ Σ_c P(c|u) 1[v ∈ c] (1 − |S ∩ c| / |S|)

over the best `POOL` candidates, after Abdollahpouri, Burke, Mobasher 2019, "Managing popularity
bias in recommender systems with personalized re-ranking", the smooth variant; P(v|u) is scaled to
[0, 1] within the pool, P(c|u) the share of c in the user's history, c head or tail (or a genre).

**Calibration**: greedy lists whose groups are distributed as in the user's history,

    pick argmax (1 − λ) Σ_{v ∈ S} s(v) − λ KL(p ‖ 0.99 q(S) + 0.01 p)

Steck 2018, "Calibrated recommendations". Groups are classes of popularity for an objective about
popularity (as Abdollahpouri et al. 2021 calibrate it), else the items' own.

**Most popular items**: the same list for everyone. What any recommender should beat.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fudlr.compare.base import Point, Ranker, Rival, Setting, item_classes
from fudlr.evaluation import Prompts
from fudlr.metrics.side import unseen_items

PENALTIES = (0.05, 0.1, 0.2, 0.4)
XQUAD_MIXES = (0.1, 0.2, 0.4, 0.6)
CALIBRATION_MIXES = (0.5, 0.8, 0.9, 0.99)
SMOOTHING = 0.01
POOL = 100


class Pool(NamedTuple):
    """For n lists: relevance [n, P], groups [n, P, G], and their users' [n, 1, G]."""

    relevance: Tensor
    member: Tensor
    wanted: Tensor


Gain = Callable[[Pool, Tensor, int, float], Tensor]
"""From a pool, what lists hold of the groups [n, 1, G], their length, and λ, to gains [n, P]."""


def _xquad(pool: Pool, held: Tensor, taken: int, mix: float) -> Tensor:
    missing = pool.wanted * (1 - held / max(taken, 1))
    return (1 - mix) * pool.relevance + mix * (pool.member * missing).sum(2)


def _calibrated(pool: Pool, held: Tensor, taken: int, mix: float) -> Tensor:
    smooth = (1 - SMOOTHING) * (held + pool.member) / (taken + 1) + SMOOTHING * pool.wanted
    logs = (pool.wanted.clamp_min(1e-12) / smooth.clamp_min(1e-12)).log()
    return (1 - mix) * pool.relevance - mix * (pool.wanted * logs).sum(2)


def _greedy(setting: Setting, gain: Gain, mix: float) -> Ranker:
    """Lists that take the candidate with the most gain next, again and again, as scores."""

    def rank(scores: Tensor, prompts: Prompts) -> Tensor:
        side = prompts.side
        groups = item_classes(setting, side)
        shares = side.mask.float() @ groups
        wanted = (shares / shares.sum(1, keepdim=True).clamp_min(1e-12))[:, None]
        size = min(POOL, int(unseen_items(side.seen).min()))
        values, candidates = scores.masked_fill(side.mask, -torch.inf).topk(size, dim=1)
        low = values[:, -1:]
        relevance = (values - low) / (values[:, :1] - low).clamp_min(1e-12)
        member, rows = groups[candidates], torch.arange(len(candidates))
        pool = Pool(relevance, member, wanted)
        held, lists = torch.zeros_like(member[:, :1]), []
        free = torch.ones_like(candidates, dtype=torch.bool)
        for taken in range(side.k):
            gains = gain(pool, held, taken, mix)
            chosen = gains.masked_fill(~free, -torch.inf).argmax(1)
            free[rows, chosen] = False
            held = held + member[rows, chosen][:, None]
            lists.append(candidates[rows, chosen])
        return as_scores(torch.stack(lists, 1), scores.shape[1])

    return rank


def as_scores(lists: Tensor, n_items: int) -> Tensor:
    """Scores [n, M] whose top K are the `lists` [n, K], best first."""
    n, k = lists.shape
    scores = torch.full((n, n_items), -1.0)
    return scores.scatter_(1, lists, torch.arange(k, 0, -1.0).expand(n, k))


def _penalised(beta: float) -> Ranker:
    return lambda scores, prompts: scores - beta * prompts.side.popularity.log1p().to(scores)


def _most_popular(scores: Tensor, prompts: Prompts) -> Tensor:
    return prompts.side.popularity.to(scores).expand_as(scores)


def _mixes(gain: Gain, mixes: tuple[float, ...]) -> Callable[[Setting], list[Point]]:
    return lambda setting: [
        Point(f"λ = {mix:g}", ranker=_greedy(setting, gain, mix), soft=False) for mix in mixes
    ]


PENALTY = Rival(
    "popularity penalty",
    "re-ranking by s − β log(1 + φ)",
    lambda _: [Point(f"β = {beta:g}", ranker=_penalised(beta)) for beta in PENALTIES],
)
XQUAD = Rival(
    "xQuAD",
    "greedy re-ranking that covers head and tail as histories do",
    _mixes(_xquad, XQUAD_MIXES),
)
CALIBRATION = Rival(
    "calibration",
    "greedy re-ranking to the user's own distribution",
    _mixes(_calibrated, CALIBRATION_MIXES),
)
MOST_POPULAR = Rival(
    "most popular items",
    "no model: the most popular unseen items for everyone",
    lambda _: [Point("", ranker=_most_popular, soft=False)],
)
