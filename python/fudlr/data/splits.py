"""Splits, each user's own time or one time for all: what trains, what steers, what judges."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from fudlr.common.errors import DataError, UsageError
from fudlr.config import DataConfig
from fudlr.data.interactions import Bools, DataWarning, Interactions, Ints, Samples, Split


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
    return _split(interactions, pretrain, train, kept, counts)


def time_split(
    interactions: Interactions,
    max_train_per_user: int = 8,
    pretrain_share: float = 0.5,
    min_history: int = 1,
    time_share: float = 0.8,
) -> Split:
    """Split at one time for all users: nothing that trains is younger than a prompt's target.

    The cut is where a share of `time_share` of all interactions lies before. What a user chose
    before it is for pretraining and training, as in `leave_last_out` less its last two. From the
    cut on, a user's last interaction is the test target, and the one before it the validation
    target; histories hold all that came before a target.

    Popularity counts the interactions before the cut.

    Raises:
        UsageError: a setting out of range.
        DataError: no training target before the cut, or fewer than two users with two from it on.
    """
    if max_train_per_user < 1 or not 0 <= pretrain_share < 1 or not 0 < time_share < 1:
        raise UsageError(
            "a split at one time was asked for",
            f"max_train_per_user={max_train_per_user}, pretrain_share={pretrain_share}, "
            f"time_share={time_share}",
            "At least 1, a share from 0 to below 1, and one between 0 and 1 are needed",
        )
    place = int(time_share * len(interactions))
    cut = int(np.partition(interactions.time, place)[place])
    early = interactions.time < cut
    starts, stops = interactions.user_starts[:-1], interactions.user_starts[1:]
    middle = starts + np.bincount(interactions.user[early], minlength=starts.size)
    half = starts + np.floor(pretrain_share * (middle - starts)).astype(np.int64)
    first = np.maximum(np.maximum(half, starts + min_history), middle - max_train_per_user)
    train = _ranges(np.minimum(first, middle), middle)
    kept = (stops - middle >= 2) & (stops - 2 >= starts + min_history)
    if not train.size or kept.sum() < 2:
        raise DataError(
            f"a split at one time was asked for, with {time_share:.0%} of the interactions before",
            f"there are {train.size} training targets before time {cut}, and {int(kept.sum())} "
            "users with a validation and a test target from it on",
            "Split each user's own time (data.split=leave_last_out)",
        )
    left_out = int((~kept).sum())
    if left_out:
        warnings.warn(
            f"{left_out} of {starts.size} users have fewer than two interactions from time {cut} "
            "on; they have no validation and no test target",
            DataWarning,
            stacklevel=2,
        )
    pretrain = np.stack([np.arange(starts.size), starts, half], axis=1)[half > starts]
    return _split(interactions, pretrain, train, kept, early)


def _split(
    interactions: Interactions, pretrain: Ints, train: Ints, kept: Bools, counts: Bools
) -> Split:
    """The last two of every user that is `kept` are targets; popularity is of what `counts`."""
    stops = interactions.user_starts[1:][kept]
    popularity = np.bincount(interactions.item[counts], minlength=interactions.n_items)
    return Split(
        interactions,
        pretrain,
        Samples(interactions, train),
        Samples(interactions, stops - 2),
        Samples(interactions, stops - 1),
        popularity.astype(np.int64),
        int((~kept).sum()),
    )


def split_as(config: DataConfig, interactions: Interactions) -> Split:
    """`interactions` split as the options say.

    Raises:
        DataError: as the split's.
    """
    given = (interactions, config.max_train_per_user, config.pretrain_share)
    if config.split == "time":
        return time_split(*given)
    return leave_last_out(*given)


def drawn(split: Split, config: DataConfig) -> Split:
    """`split` with as many of its training samples, and of its users' prompts, as the options say.

    The order stays, and validation and test keep the same users; the draws are the same for every
    seed of a run, so that runs compare. Users to whom fewer than `k` items, or than the candidates
    to be drawn, are left unseen have no prompts, which is said. Popularity stays that of all
    interactions: the data are the same, and only what is trained on and looked at is less.

    Raises:
        DataError: nobody is left.
    """
    wanted = config.k
    if isinstance(config.candidates, int):
        wanted = max(wanted, config.candidates)
    starts = split.interactions.user_starts[split.test.user]
    unseen = split.interactions.n_items - (split.test.position - starts)
    kept = unseen >= wanted
    if not kept.all():
        found = (
            f"{int((~kept).sum())} of {kept.size} users have fewer than {wanted} of the "
            f"{split.interactions.n_items} items left unseen"
        )
        if not kept.any():
            raise DataError(
                f"prompts with {wanted} items to choose from were asked for",
                found,
                "Lower data.k or data.candidates",
            )
        text = f"{found}; they have no prompts"
        warnings.warn(DataWarning(text, "short_prompts", int((~kept).sum())), stacklevel=2)
        split = replace(split, valid=split.valid.take(kept), test=split.test.take(kept))
    rng = np.random.default_rng(0)

    def some(samples: Samples, count: int | None) -> Ints:
        size = len(samples) if count is None else min(count, len(samples))
        return np.sort(rng.permutation(len(samples))[:size])

    train = some(split.train, config.train_samples)
    users = some(split.valid, config.prompt_users)
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
