"""What every metric of the table must do; a new line there is tested by being there."""

import math

import pytest
import torch
from fudlr.metrics import METRICS, top_k
from metric_cases import TRUTH, M, N, better_and_worse, lists, problem

pytestmark = pytest.mark.parametrize("name", list(TRUTH))


def test_hard_is_the_plain_python_value(name):
    scores, side = problem(torch.float32)
    top = top_k(scores, side)
    assert top.tolist() == lists(scores, side)
    assert float(METRICS[name].hard(top, side)) == pytest.approx(TRUTH[name](top.tolist(), side))


def test_weights_are_repetitions(name):
    scores, side = problem()
    weights = (torch.arange(N) * 7 % 5) ** 2 % 4
    rows = torch.arange(N).repeat_interleave(weights)
    repeated = METRICS[name].hard(top_k(scores, side)[rows], side.take(rows))
    weighted = METRICS[name].hard(top_k(scores, side), side, weights)
    torch.testing.assert_close(weighted, repeated)
    every = METRICS[name].hard(top_k(scores, side), side)
    if name != "coverage":  # two of three prompts may well cover as much as three
        assert not math.isclose(float(weighted), float(every))


def test_surrogate_gradient(name):
    scores, side = problem()
    few = torch.arange(6)
    side, scores = side.take(few), scores[few]
    assert torch.autograd.gradcheck(
        lambda s: METRICS[name].surrogate(s, side), scores.clone().requires_grad_()
    )


def test_direction(name):
    _, side = problem()
    metric = METRICS[name]
    better, worse = better_and_worse(name, side)
    sign = 1 if metric.lower_is_better else -1
    assert sign * metric.surrogate(better, side) < sign * metric.surrogate(worse, side)
    hard = [metric.hard(top_k(s, side), side) for s in (better, worse)]
    assert sign * hard[0] < sign * hard[1]


def test_descending_the_surrogate_improves_it_and_its_gradient_points_there(name):
    scores, side = problem()
    metric = METRICS[name]
    sign = 1 if metric.lower_is_better else -1
    leaf = scores.clone().requires_grad_()
    before = metric.surrogate(leaf, side)
    (grad,) = torch.autograd.grad(sign * before, leaf)
    after = metric.surrogate(scores - 1e-3 * grad / grad.norm(), side)
    assert sign * after < sign * before.detach()


def test_order_of_users_does_not_matter(name):
    scores, side = problem()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    metric, other = METRICS[name], side.take(order)
    torch.testing.assert_close(
        metric.surrogate(scores, side), metric.surrogate(scores[order], other)
    )
    torch.testing.assert_close(
        metric.hard(top_k(scores, side), side), metric.hard(top_k(scores[order], other), other)
    )


def test_seen_items_do_not_count(name):
    scores, side = problem()
    shouted = scores.masked_fill(side.seen, 50.0)
    metric = METRICS[name]
    torch.testing.assert_close(metric.surrogate(scores, side), metric.surrogate(shouted, side))
    assert torch.equal(top_k(scores, side), top_k(shouted, side))
    leaf = scores.clone().requires_grad_()
    (grad,) = torch.autograd.grad(metric.surrogate(leaf, side), leaf)
    assert (grad[side.seen] == 0).all()


def test_a_constant_added_to_a_users_scores_changes_nothing(name):
    scores, side = problem()
    moved = scores + torch.linspace(-5, 5, N, dtype=scores.dtype)[:, None]
    metric = METRICS[name]
    torch.testing.assert_close(metric.surrogate(scores, side), metric.surrogate(moved, side))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_close(name, dtype):
    scores, side = problem()
    scores = scores.to(dtype)
    exact = METRICS[name].surrogate(scores.double(), side)
    close = METRICS[name].surrogate(scores, side)
    torch.testing.assert_close(close.double(), exact, rtol=1e-5, atol=1e-6)


def test_certainty_has_finite_gradients(name):
    scores, side = problem()
    leaf = (1000 * scores).float().requires_grad_()
    value = METRICS[name].surrogate(leaf, side)
    (grad,) = torch.autograd.grad(value, leaf)
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()
    assert grad.shape == (N, M)
