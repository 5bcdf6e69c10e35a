"""Side information, the top K, and the dictionary that the files hold."""

import dataclasses

import pytest
import torch
from fudlr.common.errors import NumericalError, UsageError
from fudlr.metrics import METRICS, Side, evaluate
from metric_cases import TRUTH, M, N, problem


def test_every_metric_of_the_table_has_a_truth():
    assert list(METRICS) == list(TRUTH)


def test_names_in_the_files():
    scores, side = problem()
    assert set(evaluate(scores, side)) == {
        *("arp", "aplt", "gini", "coverage", "entropy", "hellinger@4", "dp@4", "hit_gap@4"),
        *("mgu@4", "dgu@4", "hr@4", "ndcg@4", "mrr@4", "hellinger", "dp", "hit_gap", "mgu", "dgu"),
        *("arp_soft", "aplt_soft", "gini_soft", "coverage_soft", "entropy_soft"),
        *("hr_soft", "ndcg_soft", "mrr_soft"),
    }


def test_what_needs_missing_groups_is_left_out():
    scores, side = problem()
    alone = dataclasses.replace(side, user_group=torch.zeros_like(side.user_group))
    assert not {"hellinger", "dp", "hit_gap@4"} & set(evaluate(scores, alone))
    assert "mgu" in evaluate(scores, alone)
    for none in (None, torch.zeros(M, 0)):
        plain = dataclasses.replace(side, item_groups=none, history_groups=None)
        found = set(evaluate(scores, plain))
        assert not {"hellinger", "dp@4", "mgu", "dgu"} & found
        assert {"hit_gap", "arp"} <= found


def test_take_keeps_the_groups_even_where_one_is_absent():
    _, side = problem()
    side = dataclasses.replace(side, group_labels=())
    assert side.take((side.user_group == 0).nonzero()[:, 0]).n_groups == 3


def test_from_arrays():
    scores, side = problem()
    fields = {f.name: getattr(side, f.name) for f in dataclasses.fields(side)}
    arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in fields.items()}
    arrays["popularity"] = arrays["popularity"].astype("int64")
    assert evaluate(scores, Side.from_arrays(**arrays)) == evaluate(scores, side)


BAD_SIDES = {
    "K beyond the catalogue": (
        {"k": M + 1},
        f"K = {M + 1} items were asked for: the catalogue has",
    ),
    "K of nothing": ({"k": 0}, "Choose K from 1"),
    "popularity NaN": ({"popularity": torch.full((M,), torch.nan)}, "it holds NaN"),
    "popularity negative": ({"popularity": -torch.ones(M)}, "it holds NaN"),
    "tail of another length": ({"tail": torch.ones(3, dtype=torch.bool)}, "`tail`"),
    "target no item": ({"target": torch.full((N,), M)}, "some are no item"),
    "target negative": ({"target": torch.full((N,), -1)}, "some are no item"),
    "target seen": ({"seen": torch.ones(N, M, dtype=torch.bool)}, "among the items seen before"),
    "seen of another shape": ({"seen": torch.zeros(M, N, dtype=torch.bool)}, "`seen`"),
    "group without a label": ({"group_labels": ("a", "b")}, "There are 2 labels"),
    "histories of other groups": ({"history_groups": torch.ones(N, 2)}, "`history_groups`"),
    "item groups of other items": ({"item_groups": torch.ones(2, 3)}, "`item_groups`"),
}


@pytest.mark.parametrize(("changed", "message"), BAD_SIDES.values(), ids=BAD_SIDES.keys())
def test_bad_side_information_is_refused(changed, message):
    _, side = problem()
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(side, **changed)


def test_too_few_unseen_items_for_a_list():
    scores, side = problem()
    seen = torch.ones(N, M, dtype=torch.bool).scatter(1, side.target[:, None], False)
    with pytest.raises(UsageError, match="has only 1 items left"):
        evaluate(scores, dataclasses.replace(side, seen=seen))


def test_bad_scores_are_refused():
    scores, side = problem()
    with pytest.raises(UsageError, match="a row a prompt"):
        evaluate(scores[:, 1:], side)
    scores[0, side.target[0]] = torch.nan
    with pytest.raises(NumericalError, match="NaN or infinite"):
        evaluate(scores, side)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        METRICS["arp"].surrogate(scores, side)


def test_no_prompts():
    scores, side = problem()
    none = torch.arange(0)
    with pytest.raises(UsageError, match="there are no prompts"):
        evaluate(scores[none], side.take(none))
