"""The recommender as it comes: its training, its lists, and the groups of its users."""

import torch

from fudlr.diagnostics.base import Facts, Finding, Severity, graded
from fudlr.evaluation import popular_lists
from fudlr.metrics.accuracy import NDCG

STILL_FALLING = 0.1
"""Of the loss's whole fall: a tenth an epoch means that the last ten per cent were not learned."""
ALIKE = 0.4
"""Of a list: one ranking for all users shares about half, for they have seen other items."""
TIED = 0.05
"""Of the prompts: more could move a figure by more than its usual interval."""
FEW, TOO_FEW = 30, 10
"""Users of a group, whose mean has a standard error of 1/√m of a user's spread: more than 18%
below 30, more than 32% below 10."""


def training(facts: Facts) -> Finding | None:
    """(L_{E−1} − L_E) / (L_1 − L_E), the last epoch's share of the loss's fall; 1 after one epoch.

    The closed form is a step from an optimum. Where the loss still falls from epoch to epoch,
    retraining goes on falling too, and the step stands for a training as short. None for adapters
    trained elsewhere, and where the training is unrolled, ended or not.
    """
    losses = facts.plan.run.losses
    if not losses or facts.plan.update == "unrolled":
        return None
    whole = losses[0] - losses[-1]
    share = (losses[-2] - losses[-1]) / whole if len(losses) > 1 and whole > 0 else 1.0
    return graded(
        "training",
        share,
        {Severity.WARN: STILL_FALLING},
        found=f"the last of {len(losses)} epochs of training made {share:.0%} of the loss's fall",
        reason=f"Beyond {STILL_FALLING:.0%} training has not converged, and the closed form stands "
        "for a retraining that stops as early.",
        advice="Train longer (train.epochs), or unroll the training (debias.update: unrolled).",
    )


def most_popular(facts: Facts) -> Finding | None:
    """NDCG@K on the test prompts over that of the most popular items, the same for every user.

    Warns where the paired 95% interval of the difference does not lie above 0.
    """
    if facts.before is None or len(facts.before.losses) < 2:
        return None
    side, key = facts.plan.test.side, f"ndcg@{facts.plan.test.side.k}"
    popular = NDCG.hard_rows(popular_lists(side), side)[:, 0]
    gain = facts.before.statistics.rows[key][:, 0] - popular
    error = 1.96 * float(gain.std()) / len(gain) ** 0.5
    low, high = float(gain.mean()) - error, float(gain.mean()) + error
    own, other = facts.before.metrics[key], float(popular.mean())
    return Finding(
        "most_popular",
        Severity.PASSED if low > 0 else Severity.WARN,
        own / other if other else float(own > 0),
        1.0,
        f"{key} is {own:.4g}, and {other:.4g} of the most popular items (difference "
        f"{low:+.2g} to {high:+.2g})",
        "A recommender that is no better than one list for all has learned little of its users, "
        "and its bias is that list's.",
        "Train longer, on more data or with another recommender.kind, before it is debiased.",
    )


def lists_alike(facts: Facts) -> Finding | None:
    """What the lists of two users share on the test prompts, of a list, on the average.

    Where all users are shown the same few items, a mean over users is a mean over those items: one
    that comes in, or goes, moves ARP for everybody, and no interval over users shows it.
    """
    if facts.before is None or len(facts.before.losses) < 2:
        return None
    side = facts.plan.test.side
    lists = facts.before.statistics.top
    users = len(lists)
    times = torch.bincount(lists.flatten(), minlength=side.popularity.numel())
    # An item in e lists is shared by e (e − 1) / 2 pairs of users.
    shared = float((times * (times - 1)).sum()) / (users * (users - 1))
    return graded(
        "lists_alike",
        shared / side.k,
        {Severity.WARN: ALIKE},
        found=f"two users' lists share {shared:.1f} of {side.k} items, and all {users} lists hold "
        f"{int((times > 0).sum())} items together",
        reason="Figures of lists then depend on single items, and intervals over users do not show "
        f"it (warned of above {ALIKE:.0%}).",
        advice="Go by the surrogates (`arp_soft` and its kin), and see whether the recommender is "
        "one: its AUC and hr@K, or another recommender.kind for the same adapter.",
    )


def ties(facts: Facts) -> Finding | None:
    """Test prompts in which the last item of the list is one of several with the same score."""
    if facts.before is None:
        return None
    share = facts.before.statistics.tied
    return graded(
        "ties",
        share,
        {Severity.WARN: TIED},
        found=f"in {share:.0%} of the test prompts items with one score, but for rounding, stand "
        "on both sides of the list's end",
        reason="The items' ids or the order of sums decide there, not the model (warned of above "
        f"{TIED:.0%}).",
        advice="Scores of a trained recommender seldom tie: see whether it was trained, and "
        "whether it can tell its items apart.",
    )


def small_groups(facts: Facts) -> Finding | None:
    """Users of the smallest group, where the objective compares groups."""
    if not any(term.metric.needs_groups for term in facts.plan.objective.terms):
        return None
    side = facts.plan.valid.side
    sizes = torch.bincount(side.user_group[side.user_group >= 0]).tolist()
    present = {code: size for code, size in enumerate(sizes) if size}
    code, size = min(present.items(), key=lambda each: each[1])
    label = side.group_labels[code] if side.group_labels else str(code)
    return graded(
        "small_groups",
        size,
        {Severity.WARN: FEW, Severity.REFUSE: TOO_FEW},
        found=f"the smallest group of users, {label!r}, has {size} of {sum(sizes)}",
        reason=f"A mean over so few is off by {size**-0.5:.0%} of a single user's spread (warned "
        f"of below {FEW} users, refused below {TOO_FEW}).",
        advice="Join small groups, or choose another data.user_group.",
        smaller=True,
    )
