"""A softmax over a catalogue: p_i = softmax(scale · h_i Eᵀ) over items that user i has not seen.

All take users h [n, w] and items E [M, w]; user i has seen the items
seen_items[seen_offsets[i] : seen_offsets[i + 1]].
"""

from __future__ import annotations

import torch
from torch import Tensor


def _scores(
    users: Tensor,
    items: Tensor,
    scale: float,
    offsets: Tensor | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    scores = scale * (users @ items.to(users.dtype).t())
    if offsets is None or seen is None:
        return scores
    hidden = torch.zeros_like(scores, dtype=torch.bool)
    for i in range(users.shape[0]):
        hidden[i, seen[offsets[i] : offsets[i + 1]]] = True
    return scores.masked_fill(hidden, -torch.inf)


def catalogue_mean(
    users: Tensor,
    items: Tensor,
    values: Tensor,
    scale: float = 1.0,
    *seen: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return p C [n, c] for values C [M, c], and log Σ exp of the scores [n]."""
    scores = _scores(users, items, scale, *seen)
    return scores.softmax(1) @ values, scores.logsumexp(1)


def catalogue_share(
    users: Tensor,
    items: Tensor,
    weights: Tensor,
    scale: float = 1.0,
    *seen: Tensor | None,
) -> Tensor:
    """Return pᵀ W [M, g] for weights W [n, g]."""
    return _scores(users, items, scale, *seen).softmax(1).t() @ weights


def catalogue_top(
    users: Tensor, items: Tensor, k: int, *seen: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return each user's k highest scores and their items [n, k]; −∞ and −1 where all are seen."""
    scores = _scores(users, items, 1.0, *seen)
    # A stable sort: of equal scores the lower item first.
    best, top = torch.sort(scores, dim=1, descending=True, stable=True)
    best, top = best[:, :k], top[:, :k]
    return best, top.masked_fill(best == -torch.inf, -1)
