"""What a solver returns: the solution, how good it is, and what to do where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from fudlr.common.errors import DataError, NumericalError, UsageError

Product = Callable[[Tensor], Tensor]
"""Multiplies each row of `[k, d]` with a symmetric matrix."""


class HasProduct(Protocol):
    """A symmetric matrix seen through its products."""

    def product(self, vectors: Tensor) -> Tensor:
        """H₀ v for each row v of `vectors` `[k, d]`, without damping."""
        ...


class Status(Enum):
    """How the solve of one right-hand side ended, from best to worst."""

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    NEGATIVE_CURVATURE = "negative_curvature"
    NOT_FINITE = "not_finite"


_SEVERITY = list(Status)


def worst(statuses: Iterable[Status]) -> Status:
    """The status that a caller should hear of."""
    return max(statuses, key=_SEVERITY.index)


@dataclass(frozen=True)
class Solution:
    """Solutions of (H₀ + damping · I) x = b for k right-hand sides.

    Attributes:
        x: `[k, d]`, finite in every status.
        residuals: ‖b − (H₀ + damping) x‖ / ‖b‖, `[k]`; 0 where b is 0. Those of conjugate
            gradients are carried along by its recursion, not computed anew.
        steps: Products that the solve took, at most.
        statuses: One a right-hand side.
        message: What happened, its likely cause, and what to try.
    """

    x: Tensor
    residuals: Tensor
    steps: int
    statuses: tuple[Status, ...]
    message: str

    @property
    def status(self) -> Status:
        """The worst of the statuses."""
        return worst(self.statuses)

    @property
    def negative_curvature(self) -> bool:
        """Whether a direction with vᵀ (H₀ + damping) v ≤ 0 was met."""
        return Status.NEGATIVE_CURVATURE in self.statuses

    @property
    def warnings(self) -> list[str]:
        """The message where a person should see it: at anything worse than too few steps."""
        return [self.message] if _SEVERITY.index(self.status) >= 2 else []


Solve = Callable[[Tensor], Solution]
"""Right-hand sides `[k, d]` to their solution: a curvature, its damping and a solver in one."""


def check_system(rhs: Tensor, damping: float) -> None:
    """Refuse what no solver can answer.

    Raises:
        DataError: `rhs` is no float32 or float64 matrix with at least one row.
        NumericalError: A right-hand side is not finite.
        UsageError: The damping is negative or not finite.
    """
    if rhs.dim() != 2 or rhs.shape[0] == 0 or rhs.dtype not in (torch.float32, torch.float64):
        raise DataError(
            "a solve needs right-hand sides [k, d], k ≥ 1, in float32 or float64",
            f"{rhs.dtype} of shape {tuple(rhs.shape)}",
            "A single one is a matrix with one row: b[None]; widen 16-bit gradients first",
        )
    if not math.isfinite(damping) or damping < 0:
        raise UsageError(
            "a solve needs a damping that is finite and not negative",
            f"{damping}",
            "Give the λ of the training loss, or more where training stopped early",
        )
    broken = (~rhs.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise NumericalError(
            "a linear system was to be solved",
            f"right-hand side {broken[0]} of {rhs.shape[0]} has NaN or infinite entries",
            "Look at the metric or the samples that it was made of",
        )
