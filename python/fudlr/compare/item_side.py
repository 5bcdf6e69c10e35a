"""Item-side weights, as IFairLRS reweights: groups over-represented among targets weigh less.

    w(g) = share of g in the users' histories / share of g among the training targets

after Jiang, Wang, Liu et al. 2024, "Item-side fairness of large language model-based recommendation
system". Corrected: their code weighs a batch by the mean over its samples, which says next to
nothing about each; here a sample has its own weight, the mean over its target's groups.
"""

import torch

from fudlr.compare.base import Point, Rival, Setting
from fudlr.compare.groups import classes


def _points(setting: Setting) -> list[Point]:
    samples = setting.run.split.train
    groups = classes(setting)
    target = groups[torch.from_numpy(samples.target)]
    history = torch.from_numpy(samples.seen()).float() @ groups
    wanted = (history / history.sum(1, keepdim=True).clamp_min(1e-12)).mean(0)
    found = target.mean(0)
    ratio = wanted / wanted.sum() * found.sum() / found.clamp_min(1e-12)
    weights = (target @ ratio) / target.sum(1).clamp_min(1e-12)
    return setting.retrained([("", weights / weights.mean())], "item-side weights")


RIVAL = Rival(
    "item-side weights",
    "IFairLRS's weights by item group, a weight a sample; retrained",
    _points,
)
