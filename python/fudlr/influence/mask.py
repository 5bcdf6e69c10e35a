"""Which samples to remove: scores, the threshold rule under a budget, and gradient descent.

The objective over a mask m ∈ [0, 1]ⁿ, linearised at θ* and scaled to equal spread, is

    Σ m_i score_i,   score_i = λ_fair · s_i / std(s) + λ_acc · a_i / std(a) + λ_spa

with s and a the influence on the unfairness and on the validation loss (both lower is better).
Under Σ m ≤ budget · n a linear objective's optimum is a vertex: the lowest scores below 0, as many
as the budget allows. `gradient_descent_mask` finds the same vertex from inside (FUDLR, arXiv
2601.17492, optimises its mask so); it is here as the rule's check. On the metric itself instead of
its linearisation it would exploit the approximation's error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fudlr.common.errors import DataError, UsageError
from fudlr.influence.scores import check_finite

LAST = 0.1
"""Share of a descent's steps by whose end its mask should have settled."""
_DECAYS = (0.9, 0.99)
"""Adam's β₁ and β₂."""
_LIMIT = 20.0
"""Largest |z|: a sample beyond could never change its mind."""
LARGE_BUDGET = 0.2
"""Share of removed samples beyond which one closed-form step falls well short of retraining."""


@dataclass(frozen=True)
class Mask:
    """Samples to remove.

    Attributes:
        remove: `[n]`, boolean; true forgets a sample.
        soft: `[n]` in [0, 1], where gradient descent found it; else None.
        unsettled: Samples that changed sides in the last `LAST` of the descent's steps, as a share
            of those that the budget allows; None where nothing descends.
        warnings: What a person should know before removing them.
    """

    remove: Tensor
    soft: Tensor | None = None
    warnings: list[str] = field(default_factory=list)
    unsettled: float | None = None

    @property
    def removed(self) -> int:
        """Number of samples to remove."""
        return int(self.remove.sum())


def threshold_mask(score: Tensor, budget: float) -> Mask:
    """The lowest `budget` share of the scores, as far as they are below 0.

    Args:
        score: `[n]`; see `scores`.
        budget: Largest share of the n samples to remove, in (0, 1].

    Raises:
        UsageError: The budget is outside (0, 1].
        NumericalError: A score is not finite; the sample is named.
    """
    _check_mask(score, budget)
    room = min(room_of(budget, score.numel()), int((score < 0).sum()))
    remove = torch.zeros_like(score, dtype=torch.bool)
    # A stable sort: equal scores leave in the order of the samples, on every machine.
    remove[torch.sort(score, stable=True).indices[:room]] = True
    return Mask(remove, None, _warnings(budget, room, score.numel()))


def gradient_descent_mask(
    score: Tensor, budget: float, *, steps: int = 500, learning_rate: float = 0.3
) -> Mask:
    """Minimise Σ m_i score_i over m = σ(z) with Σ m ≤ budget · n, by projected Adam on z.

    While the budget binds, the gradient is projected on its tangent (Rosen 1960), and each step
    ends with the common shift of z that meets it again. The result is rounded to whole samples.

    Args:
        score: `[n]`; see `scores`.
        budget: Largest share of the n samples to remove, in (0, 1].
        steps: Adam's steps.
        learning_rate: Adam's.

    Raises:
        UsageError, NumericalError: As `threshold_mask`.
    """
    _check_mask(score, budget)
    n = score.numel()
    room = room_of(budget, n)
    gradient = score.double() / score.abs().max().clamp_min(torch.finfo(score.dtype).tiny)
    z = torch.full_like(gradient, -4.0)  # nearly nothing removed, where the gradient still lives
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    late, flipped = math.ceil((1 - LAST) * steps), torch.zeros_like(z, dtype=torch.bool)
    for step in range(1, steps + 1):
        before = z > 0
        d = z.sigmoid() * (-z).sigmoid()  # ∂σ/∂z; keeps its digits where σ is next to 0 or 1
        along = d * (gradient + _multiplier(z, d, gradient, room))
        first.lerp_(along, 1 - _DECAYS[0])
        second.lerp_(along.square(), 1 - _DECAYS[1])
        # No ε beside the root but what keeps 0/0 away: the step must not know the scores' scale.
        size = (second / (1 - _DECAYS[1] ** step)).sqrt() + 1e-150
        z = z - learning_rate * (first / (1 - _DECAYS[0] ** step)) / size
        z = _within_budget(z.clamp(-_LIMIT, _LIMIT), room)
        if step > late:
            flipped |= before != (z > 0)
    soft = z.sigmoid()
    whole = min(round(float(soft.sum())), room)
    remove = torch.zeros_like(score, dtype=torch.bool)
    remove[torch.sort(z, descending=True, stable=True).indices[:whole]] = True
    unsettled = int(flipped.sum()) / max(room, 1)
    return Mask(remove, soft.to(score.dtype), _warnings(budget, whole, n), unsettled)


def _multiplier(z: Tensor, d: Tensor, gradient: Tensor, room: int) -> float:
    """What the gradient is raised by where the budget binds: its part along Σ σ(z), if it grows."""
    if float(z.sigmoid().sum()) < room - 1e-9 * max(room, 1):
        return 0.0
    square = d.square()
    return max(0.0, -float(square @ gradient / square.sum()))


def _within_budget(z: Tensor, room: int) -> Tensor:
    """`z` lowered by the smallest common shift with which Σ σ(z) ≤ room.

    Newton's method on log Σ σ(z − shift), which is nearly straight, within a bracket.
    """
    shift, low, high = 0.0, 0.0, 64.0
    for _ in range(60):
        mask = (z - shift).sigmoid()
        total = float(mask.sum())
        if (shift == 0 and total <= room) or abs(total - room) <= 1e-12 * room:
            break
        low, high = (shift, high) if total > room else (low, shift)
        if room:
            derivative = float((mask * (shift - z).sigmoid()).sum())
            shift += math.log(total / room) * total / derivative
        if not low < shift < high:
            shift = (low + high) / 2
    return z - shift


def room_of(budget: float, n: int) -> int:
    """How many of n samples a budget allows to remove."""
    # 0.29 · 100 is 28.999999999999996, and means 29.
    return math.floor(budget * n + 1e-9)


def check_budget(budget: float) -> None:
    """Refuse what is no share of the samples."""
    if not 0 < budget <= 1:
        raise UsageError(
            "a budget was to limit the share of removed samples",
            f"{budget}",
            "Give a share above 0 and at most 1; 0.1 is the default",
        )


def _check_mask(score: Tensor, budget: float) -> None:
    check_budget(budget)
    if score.dim() != 1 or score.numel() == 0:
        raise DataError(
            "a mask was to be made from scores [n], n ≥ 1",
            f"shape {tuple(score.shape)}",
            "Give one score a sample",
        )
    check_finite(score, "score")


def _warnings(budget: float, removed: int, n: int) -> list[str]:
    warnings = []
    if budget > LARGE_BUDGET:
        warnings.append(
            f"A budget of {budget:.0%} ({removed} of {n} samples are to be removed): beyond "
            f"{LARGE_BUDGET:.0%} one closed-form step falls clearly short of retraining. "
            "Lower the budget, or verify against retraining."
        )
    if removed == 0:
        why = (
            f"the budget of {budget:g} allows less than one of {n} samples"
            if room_of(budget, n) == 0
            else "no sample's removal lowers the objective (no score is below 0)"
        )
        warnings.append(f"Nothing is to be removed: {why}.")
    return warnings
