"""Interactions are checked once; samples are positions with their history."""

import numpy as np
import polars as pl
import pytest
from fudlr.common.errors import DataError
from fudlr.config import DataConfig, RunConfig, merge
from fudlr.data import (
    DataWarning,
    Interactions,
    Samples,
    drawn,
    holdout_users,
    leave_last_out,
    make_split,
    synthetic,
    time_split,
)

USERS = pl.DataFrame({"user_id": ["u", "v"]})
ITEMS = pl.DataFrame({"item_id": list("abcd")})
GOOD = {
    "user": np.array([0, 0, 0, 1]),
    "item": np.array([2, 0, 3, 1]),
    "time": np.array([5, 5, 6, 1]),
    "users": USERS,
    "items": ITEMS,
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"user": np.array([0, 0, 0])}, "one length"),
        ({"time": np.array([5.0, 5, 6, 1])}, "`time` is float64"),
        (
            {name: np.array([], dtype=np.int64) for name in ("user", "item", "time")},
            "there are none",
        ),
        ({"user": np.array([0, 0, 0, 2])}, "`user` runs from 0 to 2, `users` has 2 rows"),
        ({"item": np.array([2, 0, -1, 1])}, "`item` runs from -1"),
        ({"user": np.array([1, 0, 0, 0])}, "not sorted"),
        ({"time": np.array([6, 5, 6, 1])}, "not sorted"),
        ({"users": USERS.rename({"user_id": "id"})}, "the first column of `users`"),
        ({"items": pl.DataFrame({"item_id": range(4)})}, "as text"),
    ],
)
def test_inconsistent_interactions_are_refused(changed, message):
    with pytest.raises(DataError, match=message):
        Interactions(**(GOOD | changed))


def test_samples_are_positions_with_history():
    samples = Samples(Interactions(**GOOD), np.array([2, 0, 3]))
    assert samples.user.tolist() == [0, 0, 1]
    assert samples.target.tolist() == [3, 2, 1]
    assert samples.time.tolist() == [6, 5, 1]
    assert [samples.history(i).tolist() for i in range(3)] == [[2, 0], [], []]
    assert samples.seen()[0].tolist() == [True, False, True, False]
    assert not samples.seen()[1:].any()
    assert samples.take(np.array([2, 0])).ids.tolist() == [3, 2]
    assert samples.take(samples.user == 1).ids.tolist() == [3]


def users_at(*times):
    """One user for each list of times; every interaction is with an item of its own."""
    user = np.repeat(np.arange(len(times)), [len(own) for own in times])
    return Interactions(
        user,
        np.arange(len(user)),
        np.concatenate([np.array(own, dtype=np.int64) for own in times]),
        pl.DataFrame({"user_id": [str(i) for i in range(len(times))]}),
        pl.DataFrame({"item_id": [str(i) for i in range(len(user))]}),
    )


def test_leave_last_out_by_hand():
    split = leave_last_out(users_at(range(21)), max_train_per_user=4)
    assert split.pretrain.tolist() == [[0, 0, 10]]
    assert split.train.ids.tolist() == [15, 16, 17, 18]
    assert split.valid.ids.tolist() == [19]
    assert split.test.ids.tolist() == [20]
    assert split.popularity.tolist() == [1] * 19 + [0, 0]


def test_training_never_reaches_into_pretraining_nor_lacks_history():
    assert leave_last_out(users_at(range(8))).train.ids.tolist() == [4, 5]
    split = leave_last_out(users_at(range(8)), pretrain_share=0.0)
    assert split.train.ids.tolist() == [1, 2, 3, 4, 5]
    assert split.pretrain.shape == (0, 3)


def test_short_histories_are_left_out_and_counted():
    data = users_at(*[range(4)] * 3, *[range(20)] * 2)
    with pytest.warns(DataWarning, match="3 of 5 users"):
        split = leave_last_out(data)
    assert split.left_out == 3
    assert np.unique(split.train.user).tolist() == [3, 4] == split.test.user.tolist()
    assert split.popularity.sum() == len(data) - 4


def test_no_user_is_long_enough():
    with pytest.raises(DataError, match="the longest history has 4"):
        leave_last_out(users_at(range(4)))


def test_time_split_by_hand():
    """Twenty interactions, half of them before time 10: users that end, that stay, that begin."""
    ends, stays = [0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11, 12]
    data = users_at(ends, stays, [13, 14, 15], [16], [17, 18, 19])
    with pytest.warns(DataWarning, match="2 of 5 users have fewer than two interactions from time"):
        split = time_split(data, max_train_per_user=2, time_share=0.5)
    assert split.pretrain.tolist() == [[0, 0, 2], [1, 5, 7]]
    assert split.train.ids.tolist() == [3, 4, 8, 9], "of a user without prompts as well"
    assert split.valid.ids.tolist() == [11, 14, 18]
    assert split.test.ids.tolist() == [12, 15, 19]
    assert split.popularity.tolist() == [1] * 10 + [0] * 10
    assert split.left_out == 2
    assert data.time[split.train.ids].max() < data.time[split.valid.ids].min()
    late = users_at([*range(20), 30, 31], [*range(40, 44)])  # 80% lie before time 40
    chosen = merge(RunConfig(), {"data.split": "time", "data.k": 1}).data
    assert make_split(late, chosen).valid.ids.tolist() == [20, 24]


def test_time_split_that_leaves_a_part_empty_is_refused():
    late = users_at([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10])
    with pytest.raises(DataError, match="1 users with a validation and a test target"):
        time_split(late, time_share=0.75)
    with pytest.raises(DataError, match="0 training targets before time 0"):
        time_split(late, time_share=0.01)


def test_held_out_users_are_nobody_elses():
    samples = leave_last_out(synthetic(30, 60, 2)).train
    steer, held = holdout_users(samples, 0.3, seed=4)
    assert sorted([*steer, *held]) == list(range(len(samples)))
    users = set(samples.user[held])
    assert len(users) == 9
    assert not users & set(samples.user[steer])
    assert np.array_equal(held, holdout_users(samples, 0.3, seed=4)[1])
    assert not np.array_equal(held, holdout_users(samples, 0.3, seed=5)[1])


def test_a_draw_keeps_users_together_and_popularity_whole():
    whole = leave_last_out(synthetic(40, 60, 2))
    split = drawn(whole, DataConfig(train_samples=30, prompt_users=12))
    assert len(split.train) == 30
    assert set(split.train.ids) < set(whole.train.ids)
    assert split.valid.user.tolist() == split.test.user.tolist()
    assert len(set(split.valid.user)) == 12
    assert (split.popularity == whole.popularity).all()
    other = drawn(whole, DataConfig(prompt_users=12))
    assert other.test.ids.tolist() == split.test.ids.tolist(), "prompts depend on nothing else"
    every = drawn(whole, DataConfig(prompt_users=10**6))
    assert every.train.ids.tolist() == whole.train.ids.tolist()
    assert every.test.ids.tolist() == whole.test.ids.tolist()


def test_users_who_have_seen_nearly_everything_have_no_prompts():
    """Of 12 items, the first user is left 2 before the test target, the second 7."""
    events = [(0, item) for item in range(11)] + [(1, item) for item in range(6)]
    events += [(2, item) for item in range(6, 12)]
    user, item = (np.array(column) for column in zip(*events, strict=True))
    data = Interactions(
        user, item, np.arange(len(user)), pl.DataFrame({"user_id": list("abc")}),
        pl.DataFrame({"item_id": [str(i) for i in range(12)]}),
    )  # fmt: skip
    split = leave_last_out(data)
    with pytest.warns(DataWarning, match="1 of 3 users have fewer than 3 of the 12 items"):
        some = drawn(split, DataConfig(k=3))
    assert some.valid.user.tolist() == some.test.user.tolist() == [1, 2]
    assert some.train.ids.tolist() == split.train.ids.tolist()
    assert drawn(split, DataConfig(k=2)).test.user.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="3 of 3 users have fewer than 8"):
        drawn(split, DataConfig(k=3, candidates=8))
