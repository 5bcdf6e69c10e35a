"""Objectives: what can be written, what it means, and what is refused."""

import dataclasses

import pytest
import torch
from fudlr.common.errors import NumericalError, UsageError
from fudlr.metrics import (
    METRICS,
    Objective,
    evaluate,
    from_function,
    load_metrics,
    metric_gradient,
    register,
    top_and_ties,
    top_k,
)
from metric_cases import problem


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("arp", [(1.0, "arp")]),
        ("arp + 0.5*hellinger", [(1.0, "arp"), (0.5, "hellinger")]),
        (" 2 * aplt+1e-2*dp ", [(2.0, "aplt"), (0.01, "dp")]),
        (".5*ndcg@10", [(0.5, "ndcg")]),
        ("1e+2*hit_gap", [(100.0, "hit_gap")]),
    ],
)
def test_what_can_be_written(text, terms):
    objective = Objective.parse(text)
    assert [(t.weight, t.metric.name) for t in objective.terms] == terms
    assert Objective.parse(str(objective)) == objective


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arb", "'arb' was asked for: it is not known. Known: arp, aplt"),
        ("", "cannot be read from ''"),
        ("arp -  dp", "nothing is ever subtracted"),
        ("-1*arp", "nothing is ever subtracted"),
        ("arp + ", "cannot be read from ''"),
        ("arp*2", "cannot be read"),
        ("arp dp", "cannot be read"),
        ("0*arp", "a weight of nothing"),
        ("1e999*arp", "a weight of nothing"),
        ("arp + 2*arp", "named twice"),
    ],
)
def test_what_cannot(text, message):
    with pytest.raises(UsageError, match=message.replace("*", r"\*")):
        Objective.parse(text)


def test_at_the_start_each_term_is_its_weight_turned_by_its_direction():
    scores, side = problem()
    objective = Objective.parse("arp + 0.5*hellinger + 2*ndcg")
    start = objective.surrogates(scores, side)
    assert float(objective.value(scores, side, start)) == pytest.approx(1 + 0.5 - 2)


def test_gradients_are_native_and_sum_to_the_objectives():
    scores, side = problem()
    objective = Objective.parse("arp + 0.5*hellinger + 2*ndcg")
    start, grads = objective.gradients(scores, side)
    leaf = scores.clone().requires_grad_()
    (whole,) = torch.autograd.grad(objective.value(leaf, side, start), leaf)
    combined = torch.einsum("t,tnm->nm", objective.coefficients(start), grads)
    torch.testing.assert_close(combined, whole)
    (native,) = torch.autograd.grad(METRICS["ndcg"].surrogate(leaf, side), leaf)
    torch.testing.assert_close(grads[2], native)


def test_missing_groups_are_refused():
    scores, side = problem()
    alone = dataclasses.replace(side, user_group=torch.full_like(side.user_group, -1))
    for ask in (
        lambda: Objective.parse("arp + dp").check(alone),
        lambda: metric_gradient(METRICS["dp"], scores, alone),
    ):
        with pytest.raises(UsageError, match="compares groups of users, and the prompts have 0"):
            ask()
    plain = dataclasses.replace(side, history_groups=None)
    with pytest.raises(UsageError, match="one of them is missing"):
        Objective.parse("mgu").check(plain)


def test_a_k_that_is_not_the_lists():
    _, side = problem()
    Objective.parse("hellinger@4").check(side)
    with pytest.raises(UsageError, match="the lists have 4 items"):
        Objective.parse("hellinger@10").check(side)


def test_a_metric_that_is_zero_at_the_start():
    scores, side = problem()
    objective = Objective.parse("arp + dp")
    start = objective.surrogates(
        torch.zeros_like(scores), dataclasses.replace(side, seen=torch.zeros_like(side.seen))
    )
    with pytest.raises(NumericalError, match="dp is zero or not finite there"):
        objective.coefficients(start)


BAD_FUNCTIONS = {
    "a count": (lambda s, side: (s > 0).double().mean(), "it has none"),
    "detached": (lambda s, side: s.detach().mean(), "it has none"),
    "other leaf": (lambda s, side: torch.ones(1, requires_grad=True).sum(), "it has none"),
    "flat": (lambda s, side: (0 * s).sum() + 1, "it is zero or not finite"),
    "infinite": (lambda s, side: s.sum() / 0.0, "surrogate is"),
    "NaN": (lambda s, side: (s.mean() * 0 - 1).sqrt(), "surrogate is nan"),
    "root at zero": (lambda s, side: (s - s.detach()).square().sum().sqrt() + 1, "not finite"),
    "not a scalar": (lambda s, side: s.mean(1), r"surrogate is \[24\]"),
}


@pytest.mark.parametrize(("function", "message"), BAD_FUNCTIONS.values(), ids=BAD_FUNCTIONS.keys())
def test_metrics_without_a_usable_gradient_say_so(function, message):
    scores, side = problem()
    with pytest.raises(NumericalError, match=message):
        metric_gradient(from_function("own", function, True), scores, side)


def test_a_users_own_metric_joins_objective_and_evaluation():
    scores, side = problem()
    register(from_function("own", lambda s, side: s.sigmoid().mean(), lower_is_better=False))
    objective = Objective.parse("arp + 2*own")
    start, _ = objective.gradients(scores, side)
    assert float(objective.value(scores, side, start)) == pytest.approx(1 - 2)
    measured = evaluate(scores, side)
    assert measured["own"] == pytest.approx(float(scores.sigmoid().mean()))
    assert "own_soft" not in measured


@pytest.mark.parametrize("name", ["arp", "my metric", "2fast", ""])
@pytest.mark.parametrize("replace", [False, True])
def test_names_that_cannot_be_registered(name, replace):
    with pytest.raises(UsageError, match="Choose "):
        register(from_function(name, lambda s, side: s.mean(), True), replace=replace)


def test_a_cell_that_is_run_again_may_replace_its_metric():
    first = register(from_function("own", lambda s, side: s.mean(), True))
    with pytest.raises(UsageError, match="replace=True"):
        register(from_function("own", lambda s, side: s.sum(), True))
    assert METRICS["own"] is first
    again = register(from_function("own", lambda s, side: s.sum(), True), replace=True)
    assert METRICS["own"] is again


def test_metrics_of_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from fudlr.metrics import from_function, register\n"
        "FIRST = 0\n"
        "def soft(scores, side):\n    return scores.softmax(1)[:, FIRST].mean()\n"
        "register(from_function('first_item', soft, True), replace=True)\n"
    )
    assert load_metrics(file) == ["first_item"]
    assert load_metrics(file) == ["first_item"]
    scores, side = problem()
    assert Objective.parse("arp + first_item").names == ["arp", "first_item"]
    assert "first_item" in evaluate(scores, side)
    for text, said in (
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("x = 1", "registers none"),
        ("def (", "SyntaxError"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=said):
            load_metrics(file)
    with pytest.raises(UsageError, match="no Python file"):
        load_metrics(tmp_path / "none.py")


def test_ties_at_the_end_of_the_list_are_counted():
    """K = 2 of the unseen; the third row's tie is with an item that was seen."""
    _, side = problem()
    m = side.popularity.numel()
    rows = torch.arange(m).float().expand(3, -1).clone()
    rows[1, m - 3] = rows[1, m - 2]
    rows[2, m - 3] = rows[2, m - 2]
    seen = torch.zeros(3, m, dtype=torch.bool)
    seen[2, m - 3] = True
    side = dataclasses.replace(side.take(torch.arange(3)), seen=seen, k=2,
                               target=torch.zeros(3, dtype=torch.int64))  # fmt: skip
    assert top_and_ties(rows, side)[1].tolist() == [False, True, False]
    rows[0, m - 3] = rows[0, m - 2] - m * 2.0**-22  # sums in another order differ by as much
    assert top_and_ties(rows, side)[1].tolist() == [True, True, False]
    rows[0, m - 3] = rows[0, m - 2] - m * 2.0**-19
    assert top_and_ties(rows, side)[1].tolist() == [False, True, False]
    assert top_k(rows, side)[1].tolist() == [m - 1, m - 3]
