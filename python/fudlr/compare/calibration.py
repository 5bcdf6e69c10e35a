"""Calibration: greedy lists whose groups are distributed as in the user's history.

    pick argmax (1 − λ) Σ_{v ∈ S} s(v) − λ KL(p ‖ 0.99 q(S) + 0.01 p)

Steck 2018, "Calibrated recommendations". Groups are classes of popularity for an objective about
popularity (as Abdollahpouri et al. 2021 calibrate it), else the items' own.
"""

from torch import Tensor

from fudlr.compare.base import Point, Ranker, Rival, Setting, as_scores
from fudlr.compare.groups import history_shares, item_classes
from fudlr.compare.xquad import greedy, pool
from fudlr.evaluation import Prompts

MIXES = (0.5, 0.8, 0.9, 0.99)
SMOOTHING = 0.01


def _ranker(mix: float, by_popularity: bool) -> Ranker:
    def rank(scores: Tensor, prompts: Prompts) -> Tensor:
        side = prompts.side
        groups = item_classes(side, by_popularity)
        wanted = history_shares(side, groups)[:, None]
        candidates, relevance = pool(scores, prompts)
        member = groups[candidates]

        def gain(held: Tensor, taken: int) -> Tensor:
            mean = (held[:, None] + member) / (taken + 1)
            smooth = (1 - SMOOTHING) * mean + SMOOTHING * wanted
            logs = (wanted.clamp_min(1e-12) / smooth.clamp_min(1e-12)).log()
            return (1 - mix) * relevance - mix * (wanted * logs).sum(2)

        return as_scores(greedy(candidates, member, side.k, gain), scores.shape[1])

    return rank


def _points(setting: Setting) -> list[Point]:
    return [
        Point(f"λ = {mix:g}", ranker=_ranker(mix, setting.by_popularity), soft=False)
        for mix in MIXES
    ]


RIVAL = Rival("calibration", "greedy re-ranking to the user's own distribution", _points)
