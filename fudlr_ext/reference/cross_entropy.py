"""A head's cross-entropy over a vocabulary."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return −log softmax(h Wᵀ) at the targets [m], 0 where they are −100, and log Σ exp [m]."""
    logits = hidden @ weight.to(hidden.dtype).t()
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    return loss, logits.detach().logsumexp(1)
