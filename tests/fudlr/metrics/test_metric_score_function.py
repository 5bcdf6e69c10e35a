"""Metrics of drawn lists: exact expectations by enumeration, signs, variance, flat metrics."""

from itertools import permutations

import pytest
import torch
from fudlr.common.errors import NumericalError, UsageError
from fudlr.metrics import METRICS, Side, from_lists, metric_gradient, top_k
from fudlr.metrics.score_function import DrawnLists
from metric_cases import problem

ITEMS, K = 5, 2
TAIL = torch.tensor([False, False, True, True, True])


def tiny(n):
    """Scores and side information of n prompts over five items, one of them seen."""
    scores = torch.randn(n, ITEMS, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    seen = torch.zeros(n, ITEMS, dtype=torch.bool)
    seen[0, 3] = True
    side = Side(
        popularity=torch.arange(ITEMS, 0, -1).double(),
        tail=TAIL,
        item_groups=None,
        target=torch.zeros(n, dtype=torch.int64),
        seen=seen,
        user_group=torch.full((n,), -1),
        k=K,
    )
    return scores, side


def mostly_tail(top, side):
    """A rule of one value a prompt: whether all of the list is tail."""
    return side.tail[top].all(1)


def mostly_tail_in_all(top, side):
    """The same as one number."""
    return mostly_tail(top, side).double().mean()


RULES = {
    "values": mostly_tail,
    "number": mostly_tail_in_all,
    "mean": METRICS["aplt"],
    "coupled": METRICS["coverage"],
}


def chances(row, seen, temperature):
    """Every ordered list of K unseen items, with Plackett and Luce's chance of it."""
    for chosen in permutations([i for i in range(ITEMS) if not seen[i]], K):
        left = (row / temperature).exp().masked_fill(seen, 0.0)
        chance = torch.ones((), dtype=row.dtype)
        for item in chosen:
            chance = chance * left[item] / left.sum()
            left = left.masked_fill(torch.arange(ITEMS) == item, 0.0)
        yield chance, chosen


def expectation(scores, side, rule, temperature):
    """E h by enumeration of both prompts' lists, differentiable."""
    total = 0.0
    for first, mine in chances(scores[0], side.seen[0], temperature):
        for second, theirs in chances(scores[1], side.seen[1], temperature):
            top = torch.tensor([mine, theirs])
            value = rule.hard(top, side) if hasattr(rule, "hard") else rule(top, side).double()
            total = total + first * second * value.mean()
    return total


@pytest.mark.parametrize("kind", RULES)
def test_value_and_gradient_are_those_of_exact_enumeration(kind):
    scores, side = tiny(2)
    temperature = 0.5
    leaf = scores.clone().requires_grad_()
    exact = expectation(leaf, side, RULES[kind], temperature)
    (slope,) = torch.autograd.grad(exact, leaf)
    drawn = from_lists("rule", RULES[kind], False, draws=600, temperature=temperature)
    value, gradient = metric_gradient(drawn, scores, side)
    assert float(value) == pytest.approx(float(exact.detach()), abs=0.03)
    # Twice the error of so few draws; a wrong sign, τ or divisor is off by the whole and more.
    assert float((gradient - slope).abs().max()) < 0.35 * float(slope.abs().max())
    assert not gradient[0, 3], "a seen item is never drawn"


def some_head(top, side):
    """A rule that most lists keep, so that without a control all of them are pushed."""
    return ~mostly_tail(top, side)


@pytest.mark.parametrize("rule", [some_head, METRICS["coverage"]])
def test_the_control_lowers_the_variance_and_draws_do(rule):
    scores, side = problem()

    def spread(draws, control):
        found = torch.stack(
            [
                DrawnLists("m", rule, False, draws=draws, seed=s, control=control).estimate(
                    scores, side
                )[1]
                for s in range(24)
            ]
        )
        return float(found.var(0).sum())

    assert spread(8, control=False) > 3 * spread(8, control=True)
    assert spread(4, control=True) / spread(16, control=True) == pytest.approx(4, rel=0.5)


@pytest.mark.parametrize("flat", [lambda top, side: 0.7, lambda top, side: top.new_full((24,), 3)])
def test_a_flat_metric_has_no_gradient_and_says_so(flat):
    scores, side = problem()
    drawn = from_lists("flat", flat, lower_is_better=True)
    value, gradient = drawn.estimate(scores, side)
    assert not gradient.any()
    assert float(value) == pytest.approx(float(drawn.hard(top_k(scores, side), side)))
    with pytest.raises(NumericalError, match="flat"):
        metric_gradient(drawn, scores, side)


def test_certain_scores_are_the_list_itself_and_finite():
    scores, side = problem()
    certain = torch.zeros_like(scores).scatter(1, top_k(scores, side), 1e4)
    value, gradient = from_lists("c", METRICS["coverage"], False, draws=4).estimate(certain, side)
    assert gradient.isfinite().all()
    assert float(value) == pytest.approx(
        float(METRICS["coverage"].hard(top_k(scores, side), side)), abs=1e-9
    )


def test_what_cannot_be_drawn_is_refused():
    scores, side = problem()
    with pytest.raises(UsageError, match="draws"):
        from_lists("m", mostly_tail, True, draws=1)
    with pytest.raises(UsageError, match="temperature"):
        from_lists("m", mostly_tail, True, temperature=0.0)
    with pytest.raises(UsageError, match="one value a prompt"):
        metric_gradient(from_lists("m", lambda top, side: top, True), scores, side)
