"""A mask m = σ(z) over samples whose removal changes k metrics by influence [n, k].

With d = m (1 − m), written as σ(z) σ(−z), which keeps its digits where m is next to 0 or 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_sums(influence: Tensor, logits: Tensor, shift: float = 0.0) -> Tensor:
    """Return Σ m, Σ d, Σ d², Σ m s [k] and Σ d² s [k] at z − shift, [3 + 2 k]."""
    z = logits - shift
    mask, slope = z.sigmoid(), z.sigmoid() * (-z).sigmoid()
    square, s = slope.square(), influence.to(z.dtype)
    single = torch.stack([mask.sum(), slope.sum(), square.sum()])
    return torch.cat([single, mask @ s, square @ s])


def mask_step(
    influence: Tensor,
    weights: Tensor,
    logits: Tensor,
    first: Tensor,
    second: Tensor,
    *numbers: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sums after a step of Adam, and the new logits and moments [n]; nothing changes.

    The numbers are the schema's: step, price, shift, rate, both decays, eps and limit.
    """
    step, price, shift, rate, decay_first, decay_second, eps, limit = numbers
    z = logits - shift
    slope = influence.to(z.dtype) @ weights + price
    gradient = z.sigmoid() * (-z).sigmoid() * slope
    first = first.lerp(gradient, 1 - decay_first)
    second = second.lerp(gradient.square(), 1 - decay_second)
    size = (second / (1 - decay_second**step)).sqrt() + eps
    z = (z - rate * (first / (1 - decay_first**step)) / size).clamp(-limit, limit)
    return mask_sums(influence, z), z, first, second
