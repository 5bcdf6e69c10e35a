"""Signed masks: −1 ≤ m_i ≤ 1, Σ |m_i| ≤ budget · n. A negative one weighs a sample up, to 2."""

import torch
from torch import Tensor

from fudlr.debias.steering.base import Steered, Steering
from fudlr.debias.steering.frank_wolfe import frank_wolfe


def signed(steering: Steering) -> Steered:
    """Steps towards the samples of the steepest slopes, down or up."""
    price = steering.job.config.lambda_spa

    def vertex(slope: Tensor, room: int) -> Tensor:
        steepest = torch.sort(slope.abs(), descending=True, stable=True).indices[:room]
        steepest = steepest[slope[steepest].abs() > price]
        found = torch.zeros_like(slope)
        found[steepest] = -slope[steepest].sign()
        return found

    return frank_wolfe(steering, vertex)
