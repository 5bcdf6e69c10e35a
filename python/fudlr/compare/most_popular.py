"""The same list for everyone: the most popular unseen items. What any recommender should beat."""

from torch import Tensor

from fudlr.compare.base import Point, Rival, Setting
from fudlr.evaluation import Prompts


def _ranker(scores: Tensor, prompts: Prompts) -> Tensor:
    return prompts.side.popularity.to(scores).expand_as(scores)


def _points(_: Setting) -> list[Point]:
    return [Point("", ranker=_ranker, soft=False)]


RIVAL = Rival("most popular items", "no model: the most popular unseen items for everyone", _points)
