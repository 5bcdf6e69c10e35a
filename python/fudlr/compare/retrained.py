"""Rivals that choose or weight training samples: our own, and those that retrain.

**Inverse popularity**: w_i ∝ φ(target)^−γ, mean 1; γ = 1 is inverse propensity scoring (Schnabel,
Swaminathan, Singh, Chandak, Joachims 2016, "Recommendations as treatments"). Weights are cut off at
10 times the mean, as is usual against their variance.

**Item-side weights**, as IFairLRS reweights: groups over-represented among targets weigh less,

    w(g) = share of g in the users' histories / share of g among the training targets

after Jiang, Wang, Liu et al. 2024, "Item-side fairness of large language model-based recommendation
system". Corrected: their code weighs a batch by the mean over its samples, which says next to
nothing about each; here a sample has its own weight, the mean over its target's groups.
"""

import torch
from torch import Tensor

from fudlr.compare.base import Point, Rival, Setting, item_classes
from fudlr.verify import random_removals

SHARES = (0.5, 1.0, 2.0)
"""Budgets of our own update, as multiples of the configured one."""
CONFIGURED = SHARES.index(1.0)
"""Which of its points is that of the configured budget."""
POWERS = (0.25, 0.5)
CUT = 10.0


def _ours(setting: Setting) -> list[Point]:
    found = []
    for share in SHARES:
        budget = min(setting.config.budget * share, 1.0)
        result, cost = setting.ours(budget)
        rule = result.summary["update"]["rule"].replace("_", " ")
        found.append(Point(f"{budget:.0%} removed, {rule}", result.theta, cost=cost))
    return found


def _retrained(setting: Setting) -> list[Point]:
    result, cost = setting.ours()
    weighted = (f"{setting.config.budget:.0%} removed", 1 - result.mask.float())
    (point,) = setting.retrained([weighted], "retrain without our mask")
    return [Point(point.strength, point.theta, cost=point.cost.plus(cost))]


def _random(setting: Setting) -> list[Point]:
    share = setting.room / setting.n
    (mask,) = random_removals(setting.n, 1, share, setting.run.config.seed)
    return setting.retrained([(f"{share:.0%} removed", 1 - mask)], "random removal")


def _popular(setting: Setting) -> list[Point]:
    weights = torch.ones(setting.n)
    # A stable sort: of equally popular targets the earlier samples leave first.
    order = _popularity(setting).sort(descending=True, stable=True).indices
    weights[order[: setting.room]] = 0
    name = f"{setting.room / setting.n:.0%} removed"
    return setting.retrained([(name, weights)], "most-popular removal")


def _inverse_popularity(setting: Setting) -> list[Point]:
    popularity, weights = _popularity(setting).float().clamp(1), []
    for power in POWERS:
        raw = popularity**-power
        cut = (raw / raw.mean()).clamp(max=CUT)
        weights.append((f"γ = {power:g}", cut / cut.mean()))
    return setting.retrained(weights, "inverse-popularity weights")


def _item_side(setting: Setting) -> list[Point]:
    samples, groups = setting.run.split.train, item_classes(setting)
    target = groups[torch.from_numpy(samples.target)]
    history = torch.from_numpy(samples.seen()).float() @ groups
    wanted = (history / history.sum(1, keepdim=True).clamp_min(1e-12)).mean(0)
    found = target.mean(0)
    ratio = wanted / wanted.sum() * found.sum() / found.clamp_min(1e-12)
    weights = (target @ ratio) / target.sum(1).clamp_min(1e-12)
    return setting.retrained([("", weights / weights.mean())], "item-side weights")


def _popularity(setting: Setting) -> Tensor:
    """Of each training sample's target, [n]."""
    return torch.from_numpy(setting.run.split.popularity[setting.run.split.train.target])


OURS = Rival(
    "removal (ours)",
    "the update that `fudlr debias` makes: nearly the adapter that never saw the masked samples",
    _ours,
    uses_users=True,
    names_samples=True,
)
RETRAINED = Rival(
    "retrained without our mask",
    "the truth that the update stands for",
    _retrained,
    uses_users=True,
    names_samples=True,
)
RANDOM = Rival("random removal", "as many samples removed at random; retrained", _random)
POPULAR = Rival(
    "most-popular removal",
    "as many samples removed, those with the most popular targets; retrained",
    _popular,
    names_samples=True,
)
INVERSE_POPULARITY = Rival(
    "inverse-popularity weights",
    "samples weighted by φ(target)^−γ, mean 1; retrained",
    _inverse_popularity,
)
ITEM_SIDE = Rival(
    "item-side weights",
    "IFairLRS's weights by item group, a weight a sample; retrained",
    _item_side,
)
