"""Pairwise accuracy, against counting by hand."""

import pytest
import torch
from fudlr.metrics import Side
from fudlr.metrics.accuracy import pairwise


def side(**changes):
    fields = {
        "popularity": [5, 3, 1, 0], "tail": [False, False, True, True], "item_groups": None,
        "target": [0, 2, 3], "seen": [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]],
        "user_group": [0, 0, 1], "k": 1, **changes,
    }  # fmt: skip
    return Side.from_arrays(**fields)


SCORES = torch.tensor([[3.0, 1.0, 2.0, 4.0], [9.0, 1.0, 5.0, 5.0], [0.0, 0.0, 0.0, 1.0]])
# Below the target: 2 of 3; of {1, 3} one below and one tied; 3 of 3.
ROWS = [2 / 3, 0.75, 1.0]


def test_by_hand():
    found = pairwise(SCORES, side())
    assert found["auc"] == pytest.approx(sum(ROWS) / 3)
    assert found["auc_tail_gap"] == pytest.approx(abs(ROWS[0] - (ROWS[1] + ROWS[2]) / 2))
    assert found["auc_group_gap"] == pytest.approx(ROWS[2] - (ROWS[0] + ROWS[1]) / 2)


def test_gaps_of_one_side_are_left_out():
    assert set(pairwise(SCORES, side(tail=[True] * 4, user_group=[0, 0, -1]))) == {"auc"}
