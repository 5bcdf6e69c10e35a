"""Re-ranking by a popularity penalty: s − β log φ, on the trained adapter's scores."""

import torch

from fudlr.compare.base import Point, Ranker, Rival, Setting
from fudlr.evaluation import Prompts

PENALTIES = (0.05, 0.1, 0.2, 0.4)


def _ranker(beta: float) -> Ranker:
    def rank(scores: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        return scores - beta * prompts.side.popularity.log1p().to(scores)

    return rank


def _points(_: Setting) -> list[Point]:
    return [Point(f"β = {beta:g}", ranker=_ranker(beta)) for beta in PENALTIES]


RIVAL = Rival("popularity penalty", "re-ranking by s − β log(1 + φ)", _points)
