"""Splits, each user's own time or one time for all: what trains, what steers, what judges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fudlr.common.errors import DataError, UsageError
from fudlr.config import DataConfig
from fudlr.data.interactions import Bools, Interactions, Ints, Samples, Split
from fudlr.data.text import warn


def leave_last_out(
    interactions: Interactions, max_train_per_user: int = 8, pretrain_share: float = 0.5
) -> Split:
    """Split every user's interactions by their own time.

    With c interactions of a user, the oldest floor(pretrain_share · c) are for pretraining. Of the
    rest, the last is the test target, the one before it the validation target, and the up to
    `max_train_per_user` latest ones before these are training targets. Targets need an earlier
    interaction.

    Popularity counts every interaction before a user's validation target, pretraining's included,
    and all interactions of users that are left out.

    Raises:
        DataError: no user has a training, a validation and a test target.
    """
    starts, stops = interactions.user_starts[:-1], interactions.user_starts[1:]
    half = starts + np.floor(pretrain_share * (stops - starts)).astype(np.int64)
    earliest = np.maximum(half, starts + 1)
    kept = stops - earliest >= 3
    if not kept.any():
        longest = (stops - starts).max()
        raise DataError(
            "a split into training, validation and test was asked for",
            f"no user has three targets (the longest history has {longest} interactions)",
            "Lower pretrain_share, or bring longer histories",
        )
    if not kept.all():
        warn(
            f"{int((~kept).sum())} of {kept.size} users have too few interactions for a training, "
            "a validation and a test target; they are left out of all three"
        )
    first = np.maximum(earliest, stops - 2 - max_train_per_user)
    counts = np.ones(len(interactions), dtype=bool)
    counts[stops[kept] - 2] = False
    counts[stops[kept] - 1] = False
    return _split(interactions, half, _ranges(first[kept], stops[kept] - 2), kept, counts)


def time_split(
    interactions: Interactions,
    max_train_per_user: int = 8,
    pretrain_share: float = 0.5,
    time_share: float = 0.8,
) -> Split:
    """Split at one time for all users: nothing that trains is younger than a prompt's target.

    The cut is where a share of `time_share` of all interactions lies before. What a user chose
    before it is for pretraining and training, as in `leave_last_out` less its last two. From the
    cut on, a user's last interaction is the test target, and the one before it the validation
    target; histories hold all that came before a target.

    Popularity counts the interactions before the cut.

    Raises:
        DataError: no training target before the cut, or fewer than two users with two from it on.
    """
    place = int(time_share * len(interactions))
    cut = int(np.partition(interactions.time, place)[place])
    early = interactions.time < cut
    starts, stops = interactions.user_starts[:-1], interactions.user_starts[1:]
    middle = starts + np.bincount(interactions.user[early], minlength=starts.size)
    half = starts + np.floor(pretrain_share * (middle - starts)).astype(np.int64)
    first = np.maximum(np.maximum(half, starts + 1), middle - max_train_per_user)
    train = _ranges(np.minimum(first, middle), middle)
    kept = (stops - middle >= 2) & (stops - starts >= 3)
    if not train.size or kept.sum() < 2:
        raise DataError(
            f"a split at one time was asked for, with {time_share:.0%} of the interactions before",
            f"there are {train.size} training targets before time {cut}, and {int(kept.sum())} "
            "users with a validation and a test target from it on",
            "Split each user's own time (data.split=leave_last_out)",
        )
    if not kept.all():
        warn(
            f"{int((~kept).sum())} of {kept.size} users have fewer than two interactions from time "
            f"{cut} on; they have no validation and no test target"
        )
    return _split(interactions, half, train, kept, early)


def _ranges(starts: Ints, stops: Ints) -> Ints:
    """Concatenate `arange(start, stop)` over all pairs."""
    size = stops - starts
    offset = np.repeat(np.cumsum(size) - size, size)
    return np.arange(size.sum()) - offset + np.repeat(starts, size)


def _split(
    interactions: Interactions, half: Ints, train: Ints, kept: Bools, counts: Bools
) -> Split:
    """The last two of every user that is `kept` are targets; popularity is of what `counts`."""
    starts, stops = interactions.user_starts[:-1], interactions.user_starts[1:][kept]
    popularity = np.bincount(interactions.item[counts], minlength=interactions.n_items)
    return Split(
        interactions,
        np.stack([np.arange(starts.size), starts, half], axis=1)[half > starts],
        Samples(interactions, train),
        Samples(interactions, stops - 2),
        Samples(interactions, stops - 1),
        popularity.astype(np.int64),
        int((~kept).sum()),
    )


def make_split(interactions: Interactions, config: DataConfig) -> Split:
    """`interactions` split, and drawn from, as the options say.

    Raises:
        DataError: as of the split, or nobody is left.
    """
    split = time_split if config.split == "time" else leave_last_out
    return drawn(split(interactions, config.max_train_per_user, config.pretrain_share), config)


def drawn(split: Split, config: DataConfig) -> Split:
    """`split` with as many of its training samples, and of its users' prompts, as the options say.

    The order stays, and validation and test keep the same users; the draws are the same for every
    seed of a run, so that runs compare. Users to whom fewer than `k` items, or than the candidates
    to be drawn, are left unseen have no prompts, which is said. Popularity stays that of all
    interactions: the data are the same, and only what is trained on and looked at is less.

    Raises:
        DataError: nobody is left.
    """
    wanted = max(config.k, config.candidates if isinstance(config.candidates, int) else 0)
    starts = split.interactions.user_starts[split.test.user]
    n_items = split.interactions.n_items
    kept = n_items - (split.test.position - starts) >= wanted
    if not kept.all():
        short = int((~kept).sum())
        found = (
            f"{short} of {kept.size} users have fewer than {wanted} of the {n_items} items left "
            "unseen"
        )
        if not kept.any():
            asked = f"prompts with {wanted} items to choose from were asked for"
            raise DataError(asked, found, "Lower data.k or data.candidates")
        warn(f"{found}; they have no prompts", "short_prompts", short)
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
