"""What the ops on a mask return."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MaskSums(NamedTuple):
    """Sums over n samples in float64, with m = σ(z) and d = m (1 − m) = ∂m/∂z.

    Attributes:
        mask: Σ m, how many samples are removed; a scalar.
        slope: Σ d.
        square: Σ d².
        changes: Σ m s, how much every metric changes to first order, [k].
        squares: Σ d² s, [k].
    """

    mask: Tensor
    slope: Tensor
    square: Tensor
    changes: Tensor
    squares: Tensor

    @classmethod
    def of(cls, sums: Tensor) -> MaskSums:
        """From the op's result [3 + 2 k]."""
        k = (sums.numel() - 3) // 2
        return cls(sums[0], sums[1], sums[2], sums[3 : 3 + k], sums[3 + k :])


def fake_sums(influence: Tensor, *rest: object) -> Tensor:
    """Without numbers, for tracing."""
    return influence.new_empty(3 + 2 * influence.shape[1], dtype=torch.float64)
