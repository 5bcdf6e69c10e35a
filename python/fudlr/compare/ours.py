"""Our own: the closed form under several budgets, and retraining without the masked samples."""

from fudlr.compare.base import Point, Rival, Setting, together

SHARES = (0.5, 1.0, 2.0)
"""Budgets, as multiples of the configured one."""
CONFIGURED = SHARES.index(1.0)
"""Which of its points is that of the configured budget."""


def _closed_form(setting: Setting) -> list[Point]:
    found = []
    for share in SHARES:
        budget = min(setting.config.budget * share, 1.0)
        result, cost = setting.ours(budget)
        found.append(Point(f"{budget:.0%} removed", result.theta, mask=result.mask, cost=cost))
    return found


def _retrained(setting: Setting) -> list[Point]:
    result, cost = setting.ours()
    weights = 1 - result.mask.float()
    (point,) = setting.retrained(
        [(f"{setting.config.budget:.0%} removed", weights)], "retrain without our mask"
    )
    return [Point(point.strength, point.theta, cost=together(point.cost, cost), mask=result.mask)]


CLOSED_FORM = Rival(
    "closed form (ours)",
    "θ* + (1/n) H⁻¹ Gᵀ m: nearly the adapter that never saw the masked samples",
    _closed_form,
    uses_users=True,
    names_samples=True,
)
RETRAINED = Rival(
    "retrained without our mask",
    "the truth that the closed form stands for",
    _retrained,
    uses_users=True,
    names_samples=True,
)
