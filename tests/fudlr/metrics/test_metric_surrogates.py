"""Surrogates have the values that their formulas say, also at the edges."""

import dataclasses
import math

import pytest
import torch
from fudlr.metrics import METRICS, Objective, Term, from_function, top_k
from metric_cases import K, M, N, problem


def distributions(scores, side):
    """The catalogue softmax in plain Python."""
    result = []
    for row, seen in zip(scores.tolist(), side.seen.tolist(), strict=True):
        mass = [0.0 if hidden else math.exp(s) for s, hidden in zip(row, seen, strict=True)]
        result.append([m / sum(mass) for m in mass])
    return result


def smooth_ranks(scores, side):
    ranks = []
    for row, seen, t in zip(scores.tolist(), side.seen.tolist(), side.target.tolist(), strict=True):
        ahead = [1 / (1 + math.exp(row[t] - s)) for s in row]
        ranks.append(1 + sum(ahead[j] for j in range(M) if j != t and not seen[j]))
    return ranks


def mean(values):
    return sum(values) / len(values)


def test_values_by_hand():
    scores, side = problem()
    p, ranks = distributions(scores, side), smooth_ranks(scores, side)
    found = [row[t] for row, t in zip(p, side.target.tolist(), strict=True)]
    groups = side.user_group.tolist()
    by_group = [mean([f for f, g in zip(found, groups, strict=True) if g == u]) for u in range(3)]
    phi, tail = side.popularity.tolist(), side.tail.tolist()
    missed = [math.prod((1 - p[u][i]) ** K for u in range(N)) for i in range(M)]
    expected = {
        "arp": mean([sum(q * math.log(1 + f) for q, f in zip(r, phi, strict=True)) for r in p]),
        "aplt": mean([sum(q for q, t in zip(r, tail, strict=True) if t) for r in p]),
        "coverage": 1 - mean(missed),
        "hit_gap": max(by_group) - min(by_group),
        "hr": mean(found),
        "ndcg": mean([1 / math.log2(1 + r) for r in ranks]),
        "mrr": mean([1 / r for r in ranks]),
    }
    soft = {name: float(METRICS[name].surrogate(scores, side)) for name in expected}
    assert soft == pytest.approx(expected)


@pytest.mark.parametrize("name", ["aplt", "gini", "entropy", "hellinger", "dp", "mgu", "dgu"])
def test_certain_of_k_items_the_surrogate_is_the_hard_value(name):
    scores, side = problem()
    top = top_k(scores, side)
    certain = torch.zeros_like(scores).scatter(1, top, 900.0)
    torch.testing.assert_close(
        METRICS[name].surrogate(certain, side), METRICS[name].hard(top, side)
    )


@pytest.mark.parametrize("name", ["hellinger", "dp", "hit_gap"])
def test_a_group_without_prompts_is_not_compared(name):
    scores, side = problem()
    rows = (side.user_group.clamp_min(0) < 2).nonzero()[:, 0]
    some = side.take(rows)
    assert some.n_groups == 3
    two = dataclasses.replace(some, group_labels=("a", "b"))
    metric, top = METRICS[name], top_k(scores[rows], some)
    assert float(metric.hard(top, some)) == pytest.approx(float(metric.hard(top, two)), abs=1e-15)
    torch.testing.assert_close(
        metric.surrogate(scores[rows], some), metric.surrogate(scores[rows], two)
    )


def test_an_item_group_that_nobody_gets_has_no_infinite_gradient():
    scores, side = problem()
    groups = torch.cat([side.item_groups, torch.zeros(M, 1)], dim=1).double()
    wider = dataclasses.replace(side, item_groups=groups, history_groups=None)
    leaf = scores.clone().requires_grad_()
    value = METRICS["hellinger"].surrogate(leaf, wider)
    (grad,) = torch.autograd.grad(value, leaf)
    assert torch.isfinite(grad).all()
    torch.testing.assert_close(value, METRICS["hellinger"].surrogate(scores, side))


def test_a_metric_below_zero_keeps_its_direction():
    scores, side = problem()
    below = from_function("below", lambda s, side: s.mean() - 50, lower_is_better=True)
    objective = Objective((Term(3.0, below),))
    start = objective.surrogates(scores, side)
    assert float(objective.value(scores, side, start)) == pytest.approx(-3)
    lower = objective.value(scores - 1, side, start)
    assert lower < -3
