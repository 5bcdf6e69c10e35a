"""Groups of users that are too small for a gap between them to mean something.

A mean over m users has a standard error of 1/√m of a user's spread.
"""

import torch

from fudlr.diagnostics.base import Facts, Finding, Severity, graded

FEW, TOO_FEW = 30, 10
"""Users: below 30 the error is more than 18% of a user's spread, below 10 more than 32%."""


def small_groups(facts: Facts) -> Finding | None:
    """Users of the smallest group, where the objective compares groups."""
    if not any(term.metric.needs_groups for term in facts.job.objective.terms):
        return None
    side = facts.job.valid.side
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
