"""Per-sample gradients of a matrix, and what they are reduced to.

All take left [T, a] and right [T, b] first, and offsets [n + 1] last; sample i has rows
offsets[i] to offsets[i + 1] of both.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def sample_grads(left: Tensor, right: Tensor, offsets: Tensor) -> Tensor:
    """Return G_i = Σ_t left_t right_tᵀ, [n, a, b]."""
    grads = [left[i:j].t() @ right[i:j] for i, j in pairwise(offsets.tolist())]
    return torch.stack(grads) if grads else left.new_zeros(0, left.shape[1], right.shape[1])


def sample_dots(left: Tensor, right: Tensor, vectors: Tensor, offsets: Tensor) -> Tensor:
    """Return ⟨G_i, V_j⟩ for vectors [k, a, b], [n, k]."""
    return torch.einsum("nab,kab->nk", sample_grads(left, right, offsets), vectors)


def grad_sum(left: Tensor, right: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """Return Σ_i weights[w, i] G_i for weights [w, n], [w, a, b]."""
    return torch.einsum("wn,nab->wab", weights, sample_grads(left, right, offsets))
