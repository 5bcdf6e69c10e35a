"""Groups of users and items, the long tail, and data with a known cause."""

import numpy as np
import polars as pl
import pytest
from fudlr.common.errors import DataError, UsageError
from fudlr.data import (
    DataWarning,
    Interactions,
    history_groups,
    item_groups,
    leave_last_out,
    synthetic,
    tail_items,
    user_groups,
)


def with_users(**columns):
    n = len(next(iter(columns.values())))
    users = pl.DataFrame({"user_id": [str(i) for i in range(n)], **columns})
    index = np.arange(n)
    return Interactions(index, 0 * index, index, users, pl.DataFrame({"item_id": ["a"]}))


def with_items(**columns):
    m = len(next(iter(columns.values())))
    items = pl.DataFrame({"item_id": [str(i) for i in range(m)], **columns})
    one = np.zeros(1, dtype=np.int64)
    return Interactions(one, one, one, pl.DataFrame({"user_id": ["u"]}), items)


def test_user_groups_are_coded_and_unknown_is_none():
    codes, labels = user_groups(with_users(gender=["M", "F", "", "F", None, "M"]), "gender", 2)
    assert labels == ["F", "M"]
    assert codes.tolist() == [1, 0, -1, 0, -1, 1]


@pytest.mark.parametrize(
    "word", ["nan", "NaT", "<NA>", "NA", "\\N", "?", "-", "Unknown", "None", " "]
)
def test_words_for_unknown_are_no_group_of_users(word):
    codes, labels = user_groups(with_users(gender=["M", "F", word, "F", word, "M"]), "gender", 2)
    assert labels == ["F", "M"]
    assert codes.tolist() == [1, 0, -1, 0, -1, 1]


def test_small_groups_are_left_out_with_a_word():
    data = with_users(job=["cook"] * 3 + ["poet"] + ["smith"] * 3)
    with pytest.warns(DataWarning, match=r"fewer than 2 users are left out: poet \(1\)"):
        codes, labels = user_groups(data, "job", min_size=2)
    assert labels == ["cook", "smith"]
    assert codes.tolist() == [0, 0, 0, -1, 1, 1, 1]


def test_numbers_are_cut_at_quantiles():
    ages = [str(age) for age in range(20, 60)] + [""]
    codes, labels = user_groups(with_users(age=ages), "age")
    assert labels == ["20 to 29", "30 to 39", "40 to 49", "50 to 59"]
    assert np.bincount(codes[:-1]).tolist() == [10] * 4
    assert codes[-1] == -1


def test_unknown_column_lists_the_known():
    with pytest.raises(UsageError, match="The columns are gender, age"):
        user_groups(synthetic(40, 80, 0), "sex")
    with pytest.raises(UsageError, match="The columns are title, genres"):
        item_groups(synthetic(40, 80, 0), "class")


def test_fewer_than_two_groups():
    with pytest.raises(DataError, match="1 of 2 groups have at least 10 users"):
        user_groups(with_users(gender=["F"] * 20 + ["M"] * 9), "gender")


def test_item_groups_split_an_item_equally():
    data = with_items(genres=[["War", "Drama"], ["War"], [], ["Drama", "unknown"], ["Drama"]])
    membership, labels = item_groups(data)
    assert labels == ["Drama", "War"]
    assert membership.tolist() == [[0.5, 0.5], [0, 1], [0, 0], [1, 0], [1, 0]]


def test_item_groups_of_numbers_and_texts():
    membership, labels = item_groups(with_items(year=list(range(1960, 2000))), "year")
    assert labels == ["1960 to 1969", "1970 to 1979", "1980 to 1989", "1990 to 1999"]
    assert membership.sum(0).tolist() == [10] * 4
    membership, labels = item_groups(with_items(kind=["x", "y", None, "x"]), "kind")
    assert labels == ["x", "y"]
    assert membership.tolist() == [[1, 0], [0, 1], [0, 0], [1, 0]]


@pytest.mark.parametrize("values", [["a", "b", "c"], ["a", "a", "a"]])
def test_item_groups_that_tell_nothing(values):
    with pytest.raises(DataError, match="groups for 3 items"):
        item_groups(with_items(title=values), "title")


def test_history_groups_are_means_over_the_history():
    data = synthetic(6, 50, 3)
    samples = leave_last_out(data).test
    membership, _ = item_groups(data)
    rows = history_groups(samples, membership)
    assert np.allclose(rows[2], membership[samples.history(2)].mean(axis=0))
    assert np.allclose(rows.sum(axis=1), 1)


def test_tail_by_share():
    popularity = np.array([50, 5, 30, 5, 10])
    assert tail_items(popularity, 0.4).tolist() == [False, True, False, True, True]
    assert tail_items(np.ones(10, dtype=np.int64)).tolist() == [False] * 2 + [True] * 8


def test_synthetic_has_the_cause_it_promises():
    data = synthetic(300, 100, seed=5)
    codes, labels = user_groups(data, "gender")
    membership, genres = item_groups(data)
    assert labels == ["A", "B"]
    assert np.isclose((codes == 1).mean(), 1 / 3)
    shares = np.stack([membership[data.item[codes[data.user] == g]].mean(axis=0) for g in (0, 1)])
    first = [name in ("genre 0", "genre 1") for name in genres]
    assert shares[0, first].sum() > 0.6
    assert shares[1, first].sum() < 0.5
    popularity = np.sort(np.bincount(data.item, minlength=100))[::-1]
    assert popularity[:20].sum() > 0.35 * popularity.sum()
    flat = synthetic(300, 100, seed=5, skew=0.0, taste=0.0)
    assert np.sort(np.bincount(flat.item, minlength=100))[-20:].sum() < 0.3 * len(flat)


def test_what_data_sets_write_for_unknown_is_no_group():
    """24 comedies, 24 dramas, and 12 of which nothing is listed."""
    genres = [["Comedy"]] * 24 + [["Drama"]] * 24 + [["(no genres listed)"]] * 12
    membership, labels = item_groups(with_items(genres=genres))
    assert labels == ["Comedy", "Drama"]
    assert membership.sum(0).tolist() == [24, 24]
    assert (membership.sum(1) == 0).sum() == 12


def test_occupation_codes_are_groups_and_ages_are_not():
    """MovieLens-1M's 21 occupations, many users each; as many ages are cut all the same."""
    codes = [str(i % 21) for i in range(420)]
    assert len(user_groups(with_users(occupation=codes), "occupation")[1]) == 21
    assert len(user_groups(with_users(age=codes), "age")[1]) == 4
    few = [str(i) for i in range(21)] * 3  # three users a value say nothing
    assert len(user_groups(with_users(score=few), "score")[1]) == 4
