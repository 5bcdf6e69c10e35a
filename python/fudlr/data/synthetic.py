"""Interactions made up with a known cause: popularity skew, genres, and groups that differ."""

from __future__ import annotations

import numpy as np
import polars as pl

from fudlr.common.errors import UsageError
from fudlr.data.interactions import Floats, Interactions, Ints

CHUNK = 4_000_000  # scores held at a time


def synthetic(
    n_users: int = 200,
    n_items: int = 150,
    seed: int = 0,
    *,
    per_user: tuple[int, int] = (20, 40),
    n_genres: int = 4,
    skew: float = 1.0,
    taste: float = 1.5,
) -> Interactions:
    """Draw interactions from a choice model that is known in full.

    User u takes items without replacement with log-odds -skew·log(rank) + taste·[genre is a
    favourite of u's group]. Group "A" favours the first half of the genres, "B" the second; a third
    of the users are "B". Every third item has two genres.

    Args:
        n_users: U.
        n_items: M.
        seed: the same seed gives the same data.
        per_user: least and most interactions of a user, both included.
        n_genres: G, at least 2.
        skew: exponent of the popularity's power law; 0 makes all items equal.
        taste: how far the groups' tastes are apart; 0 makes the groups equal.

    Raises:
        UsageError: sizes that cannot be drawn.
    """
    low, high = per_user
    if n_users < 2 or n_genres < 2 or not 1 <= low <= high <= n_items:
        raise UsageError(
            f"synthetic data of {n_users} users, {n_items} items, {n_genres} genres and "
            f"{low} to {high} interactions a user were asked for",
            "they cannot be drawn",
            "Give at least 2 users, 2 genres, and as many items as a user's most interactions",
        )
    rng = np.random.default_rng(seed)
    group = (np.arange(n_users) % 3 == 2).astype(np.int64)
    genres = _genres(rng, n_items, n_genres)
    rank = rng.permutation(n_items) + 1
    favourite = np.arange(n_genres) * 2 // n_genres
    log_odds = np.stack([(genres @ (favourite == g)) for g in (0, 1)]) * taste - skew * np.log(rank)

    count = rng.integers(low, high + 1, n_users)
    step = max(CHUNK // n_items, 1)
    item = np.concatenate(
        [
            _choices(rng, log_odds[group[at : at + step]], count[at : at + step])
            for at in range(0, n_users, step)
        ]
    )
    user = np.repeat(np.arange(n_users), count)
    place = np.arange(user.size) - np.repeat(np.cumsum(count) - count, count)
    time = np.repeat(rng.integers(0, 10_000, n_users), count) + 10 * place
    names = [[f"genre {g}" for g in np.flatnonzero(row)] for row in genres]
    users = pl.DataFrame(
        {
            "user_id": [f"u{u}" for u in range(n_users)],
            "gender": np.where(group == 1, "B", "A"),
            "age": rng.integers(18, 70, n_users).astype(str),
        }
    )
    ids = [f"i{i}" for i in range(n_items)]
    items = pl.DataFrame(
        {"item_id": ids, "title": [f"Item {i}" for i in range(n_items)], "genres": names}
    )
    return Interactions(user, item, time.astype(np.int64), users, items)


def _genres(rng: np.random.Generator, n_items: int, n_genres: int) -> Floats:
    """Draw each item's genres: [M, G], rows of ones at one genre or two."""
    first = np.arange(n_items) % n_genres
    second = (first + rng.integers(1, n_genres, n_items)) % n_genres
    rows = np.eye(n_genres)[first]
    both = np.arange(n_items) % 3 == 0
    rows[both] += np.eye(n_genres)[second[both]]
    return rows


def _choices(rng: np.random.Generator, log_odds: Floats, count: Ints) -> Ints:
    """Draw `count[u]` items of row u without replacement (Gumbel top-k), in random order."""
    keys = log_odds + rng.gumbel(size=log_odds.shape)
    most = int(count.max())
    top = np.argpartition(-keys, most - 1, axis=1)[:, :most]
    best_first = np.argsort(-np.take_along_axis(keys, top, axis=1), axis=1)
    top = np.take_along_axis(top, best_first, axis=1)
    return np.concatenate([rng.permutation(row[:c]) for row, c in zip(top, count, strict=True)])
