"""Lists that hardly depend on the user: what figures of lists say then hangs on single items.

Where all users are shown the same few items, a mean over users is a mean over those items: one
that comes in, or goes, moves ARP for everybody, and no interval over users shows it.
"""

import torch

from fudlr.diagnostics.base import Facts, Finding, Severity, graded

ALIKE = 0.4
"""Of a list: one ranking for all users shares about half, for they have seen other items."""


def lists_alike(facts: Facts) -> Finding | None:
    """What the lists of two users share on the test prompts, of a list, on the average."""
    if facts.before is None or len(facts.before.losses) < 2:
        return None
    side = facts.job.test.side
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
        reason="Figures of lists then hang on single items, and their intervals over users do not "
        f"show it (warned of above {ALIKE:.0%}).",
        advice="Go by the surrogates (`arp_soft` and its kin), and see whether the recommender is "
        "one: its AUC and hr@K, or another recommender.kind for the same adapter.",
    )
