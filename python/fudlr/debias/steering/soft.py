"""Soft masks: 0 ≤ m_i ≤ 1, Σ m_i ≤ budget · n. A sample is weighed down instead of removed."""

import torch
from torch import Tensor

from fudlr.debias.steering.base import Steered, Steering
from fudlr.debias.steering.frank_wolfe import frank_wolfe
from fudlr.influence.mask import threshold_mask


def soft(steering: Steering) -> Steered:
    """Steps towards the whole samples that the metric likes least at each θ(m)."""
    config = steering.job.config

    def vertex(slope: Tensor, room: int) -> Tensor:
        score = slope + config.lambda_spa
        if room == 0 or not bool((score < 0).any()):
            return torch.zeros_like(score)
        return threshold_mask(score, room / len(score)).remove

    return frank_wolfe(steering, vertex)
