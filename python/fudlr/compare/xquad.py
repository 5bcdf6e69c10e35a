"""xQuAD: greedy lists that mix relevance with covering head and tail as the user's history does.

    pick argmax (1 − λ) P(v|u) + λ Σ_c P(c|u) 1[v ∈ c] (1 − |S ∩ c| / |S|)

over the best `POOL` candidates, after Abdollahpouri, Burke, Mobasher 2019, "Managing popularity
bias in recommender systems with personalized re-ranking", the smooth variant; P(v|u) is scaled to
[0, 1] within the pool, P(c|u) the share of c in the user's history, c head or tail (or a genre).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fudlr.compare.base import Point, Ranker, Rival, Setting, as_scores
from fudlr.compare.groups import history_shares, item_classes
from fudlr.evaluation import Prompts

MIXES = (0.1, 0.2, 0.4, 0.6)
POOL = 100


def pool(scores: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """The best unseen candidates [n, P] and their relevance, scaled to [0, 1]."""
    size = min(POOL, int((~prompts.side.seen).sum(1).min()))
    best = scores.masked_fill(prompts.side.seen, -torch.inf).topk(size, dim=1)
    low = best.values[:, -1:]
    return best.indices, (best.values - low) / (best.values[:, :1] - low).clamp_min(1e-12)


def greedy(
    candidates: Tensor, member: Tensor, k: int, gain: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Lists [n, k] that take the best candidate next, again and again.

    Args:
        candidates: Items [n, P].
        member: Their groups [n, P, G].
        k: Length of a list.
        gain: From what the list holds of each group [n, G], and its length, to gains [n, P].
    """
    held = torch.zeros_like(member[:, 0])
    free = torch.ones_like(candidates, dtype=torch.bool)
    rows = torch.arange(len(candidates))
    lists = []
    for taken in range(k):
        chosen = gain(held, taken).masked_fill(~free, -torch.inf).argmax(1)
        free[rows, chosen] = False
        held = held + member[rows, chosen]
        lists.append(candidates[rows, chosen])
    return torch.stack(lists, 1)


def _ranker(mix: float, by_popularity: bool) -> Ranker:
    def rank(scores: Tensor, prompts: Prompts) -> Tensor:
        side = prompts.side
        groups = item_classes(side, by_popularity)
        wanted = history_shares(side, groups)
        candidates, relevance = pool(scores, prompts)
        member = groups[candidates]

        def gain(covered: Tensor, taken: int) -> Tensor:
            missing = wanted * (1 - covered / max(taken, 1))
            return (1 - mix) * relevance + mix * (member * missing[:, None]).sum(2)

        return as_scores(greedy(candidates, member, side.k, gain), scores.shape[1])

    return rank


def _points(setting: Setting) -> list[Point]:
    return [
        Point(f"λ = {mix:g}", ranker=_ranker(mix, setting.by_popularity), soft=False)
        for mix in MIXES
    ]


RIVAL = Rival("xQuAD", "greedy re-ranking that covers head and tail as histories do", _points)
