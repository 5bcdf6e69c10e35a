"""Candidates: the items that a prompt chooses from, where the whole catalogue costs too much."""

from __future__ import annotations

import numpy as np

from fudlr.data.interactions import Bools, Ints, Samples
from fudlr.errors import UsageError


def candidate_items(samples: Samples, count: int, seed: int) -> Ints:
    """The target and other items that the user has not seen, drawn with equal chances.

    What a sample gets depends on the seed and its place in the data alone, not on the batch.

    Returns:
        [n, count] int64, ascending in each row.

    Raises:
        UsageError: A sample has fewer unseen items.
    """
    n_items = samples.interactions.n_items
    rows = np.zeros((len(samples), count), dtype=np.int64)
    for i, (position, target) in enumerate(
        zip(samples.position.tolist(), samples.target.tolist(), strict=True)
    ):
        free = np.ones(n_items, dtype=bool)
        free[samples.history(i)] = False
        free[target] = False
        others = np.flatnonzero(free)
        if others.size < count - 1:
            raise UsageError(
                f"{count} candidates a prompt were asked for",
                f"a user has only {others.size + 1} items left that are not seen",
                "Lower data.candidates, or leave it out for the whole catalogue",
            )
        rng = np.random.default_rng((seed, position))
        drawn = rng.choice(others, count - 1, replace=False)
        rows[i] = np.sort(np.append(drawn, target))
    return rows


def candidate_mask(samples: Samples, count: int, seed: int) -> Bools:
    """The same as [n, M] bool."""
    mask = np.zeros((len(samples), samples.interactions.n_items), dtype=bool)
    np.put_along_axis(mask, candidate_items(samples, count, seed), True, axis=1)
    return mask
