"""Splits: what trains, what steers the debiasing, and what judges it."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from fudlr.data.interactions import DataWarning, Interactions, Ints, Samples, Split
from fudlr.errors import DataError, UsageError


def leave_last_out(
    interactions: Interactions,
    max_train_per_user: int = 8,
    pretrain_share: float = 0.5,
    min_history: int = 1,
) -> Split:
    """Split every user's interactions by their own time.

    With c interactions of a user, the oldest floor(pretrain_share · c) are for pretraining. Of the
    rest, the last is the test target, the one before it the validation target, and the up to
    `max_train_per_user` latest ones before these are training targets. Targets need at least
    `min_history` earlier interactions.

    Popularity counts every interaction before a user's validation target, pretraining's included,
    and all interactions of users that are left out.

    Raises:
        UsageError: a setting out of range.
        DataError: no user has a training, a validation and a test target.
    """
    if max_train_per_user < 1 or not 0 <= pretrain_share < 1 or min_history < 0:
        raise UsageError(
            "a split was asked for",
            f"max_train_per_user={max_train_per_user}, pretrain_share={pretrain_share}, "
            f"min_history={min_history}",
            "At least 1, a share from 0 to below 1, and at least 0 are needed",
        )
    starts, stops = interactions.user_starts[:-1], interactions.user_starts[1:]
    count = stops - starts
    half = starts + np.floor(pretrain_share * count).astype(np.int64)
    earliest = np.maximum(half, starts + min_history)
    kept = stops - earliest >= 3
    left_out = int((~kept).sum())
    if not kept.any():
        raise DataError(
            "a split into training, validation and test was asked for",
            f"no user has three targets (the longest history has {count.max()} interactions)",
            "Lower pretrain_share or min_history, or bring longer histories",
        )
    if left_out:
        warnings.warn(
            f"{left_out} of {count.size} users have too few interactions for a training, a "
            "validation and a test target; they are left out of all three",
            DataWarning,
            stacklevel=2,
        )
    first = np.maximum(earliest, stops - 2 - max_train_per_user)[kept]
    train = _ranges(first, stops[kept] - 2)
    pretrain = np.stack([np.arange(count.size), starts, half], axis=1)[half > starts]

    counts = np.ones(len(interactions), dtype=bool)
    counts[stops[kept] - 2] = False
    counts[stops[kept] - 1] = False
    popularity = np.bincount(interactions.item[counts], minlength=interactions.n_items)
    return Split(
        interactions,
        pretrain,
        Samples(interactions, train),
        Samples(interactions, stops[kept] - 2),
        Samples(interactions, stops[kept] - 1),
        popularity.astype(np.int64),
        left_out,
    )


def drawn(split: Split, train_samples: int | None, prompt_users: int | None, seed: int) -> Split:
    """`split` with so many of its training samples, and prompts of so many of its users.

    The order stays, and validation and test keep the same users. Popularity stays that of all
    interactions: the data are the same, and only what is trained on and looked at is less.
    """
    rng = np.random.default_rng(seed)

    def some(samples: Samples, count: int | None) -> Ints:
        size = len(samples) if count is None else min(count, len(samples))
        return np.sort(rng.permutation(len(samples))[:size])

    train, users = some(split.train, train_samples), some(split.valid, prompt_users)
    return replace(
        split,
        train=split.train.take(train),
        valid=split.valid.take(users),
        test=split.test.take(users),
    )


def _ranges(starts: Ints, stops: Ints) -> Ints:
    """Concatenate `arange(start, stop)` over all pairs."""
    size = stops - starts
    offset = np.repeat(np.cumsum(size) - size, size)
    return np.arange(size.sum()) - offset + np.repeat(starts, size)


def holdout_users(samples: Samples, share: float, seed: int) -> tuple[Ints, Ints]:
    """Divide samples by user: figures on users whose gradient was not used are the honest ones.

    Returns:
        (steer, held out), both ascending indices into `samples`; `share` of the users, at least
        one, are in the second, and no user is in both.

    Raises:
        UsageError: a share outside (0, 1), or fewer than two users.
    """
    users = np.unique(samples.user)
    if not 0 < share < 1 or users.size < 2:
        raise UsageError(
            f"a share of {share} of {users.size} users was to be held out",
            "one side would be empty",
            "Give a share between 0 and 1, and at least two users",
        )
    n_held = min(max(round(share * users.size), 1), users.size - 1)
    chosen = np.random.default_rng(seed).permutation(users)[:n_held]
    held = np.isin(samples.user, chosen)
    return np.flatnonzero(~held), np.flatnonzero(held)
