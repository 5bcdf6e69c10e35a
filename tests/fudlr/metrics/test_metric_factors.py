"""Scores as factors: every metric and its gradient are those of the matrix, which is never made."""

from dataclasses import replace

import pytest
import torch
from fudlr.evaluation import measured
from fudlr.metrics import (
    METRICS,
    Factors,
    Seen,
    SummedMetric,
    bootstrap,
    catalogue_softmax,
    from_function,
    metric_gradient,
    pointwise,
    statistics,
    surrogate,
    top_and_ties,
)
from fudlr.metrics import scores as parts
from fudlr.metrics import side as sides
from fudlr.metrics.attribute import Within
from metric_cases import TRUTH, M, N, problem

DTYPES = {torch.float32: 1e-5, torch.float64: 1e-10}


def nearness(products):
    return -(4 - products).clamp(min=1e-6).sqrt()


@pytest.fixture(params=list(DTYPES), ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=[None, nearness], ids=["product", "link"])
def factored(request, dtype, monkeypatch):
    """Factors and side information with lists of seen items, in tiles and blocks of few."""
    monkeypatch.setattr(sides, "TILE", 1)
    monkeypatch.setattr(parts, "LEAST", 16)
    monkeypatch.setattr(pointwise, "PROMPTS", 10)
    monkeypatch.setattr(pointwise, "ITEMS", 8)
    _, side = problem()
    rng = torch.Generator().manual_seed(3)
    users, items = (torch.randn(n, 8, generator=rng, dtype=torch.float64) for n in (N, M))
    side = replace(
        side,
        popularity=side.popularity.to(dtype),
        item_groups=side.item_groups.to(dtype),
        seen=Seen.of(side.seen),
    )
    scale = 1 if request.param is None else 0.3
    return Factors(users.to(dtype), scale * items.to(dtype), request.param), side


@pytest.mark.parametrize("name", list(TRUTH))
def test_value_and_gradient_are_those_of_the_matrix(name, factored, dtype):
    scores, side = factored
    found = []
    for form in (Factors, Factors.dense):
        leaf = scores.users.clone().requires_grad_()
        given = scores.of(leaf)
        value = METRICS[name].surrogate(given if form is Factors else form(given), side)
        found.append((value, torch.autograd.grad(value, leaf)[0]))
    (value, gradient), (expected, wanted) = found
    close = {"rtol": DTYPES[dtype], "atol": 0}
    torch.testing.assert_close(value.double(), expected.double(), **close)
    assert float((gradient - wanted).norm() / wanted.norm()) <= DTYPES[dtype]
    assert METRICS[name].factored


def test_figures_lists_and_statistics_are_those_of_the_matrix(factored, dtype):
    scores, side = factored
    losses, close = torch.ones(N), {"rtol": DTYPES[dtype], "atol": DTYPES[dtype]}
    own, other = (measured(form, losses, losses, side) for form in (scores, scores.dense()))
    assert own.metrics == pytest.approx(other.metrics, rel=DTYPES[dtype], abs=DTYPES[dtype])
    assert torch.equal(own.statistics.top, other.statistics.top)
    for name in ("rows", "leave_out"):
        torch.testing.assert_close(
            getattr(own.statistics, name), getattr(other.statistics, name), **close
        )
    drawn = bootstrap({"a": scores, "b": scores.dense()}, side, n_resamples=20)
    for key, interval in drawn["a"].items():
        assert interval == pytest.approx(drawn["b"][key], rel=1e-4, abs=1e-5)


def test_only_tiles_are_made(factored, monkeypatch):
    scores, side = factored
    made = []
    plain = Factors.dense
    monkeypatch.setattr(Factors, "dense", lambda self: made.append(len(self)) or plain(self))
    measured(scores, torch.ones(N), torch.ones(N), side)
    for name in METRICS:
        leaf = scores.users.clone().requires_grad_()
        METRICS[name].surrogate(scores.of(leaf), side).backward()
    assert set(made) == ({16, N - 16} if scores.link else set())


def test_equal_scores_are_listed_by_id_and_counted_as_ties():
    _, side = problem()
    side = replace(side, seen=Seen.of(side.seen))
    items = torch.ones(M, 2)
    items[::3] = 0.5  # whole numbers of halves: exact in any order of sums
    scores = Factors(torch.ones(N, 2), items)
    for own, other in zip(top_and_ties(scores, side), top_and_ties(scores.dense(), side),
                          strict=True):  # fmt: skip
        assert torch.equal(own, other)
    assert top_and_ties(scores, side)[1].all()


def test_a_metric_of_ones_own_gets_the_form_that_it_takes():
    _, side = problem()
    rng = torch.Generator().manual_seed(0)
    scores = Factors(torch.randn(N, 4, generator=rng), torch.randn(M, 4, generator=rng))
    given = []

    def plain(scores, side):
        given.append(type(scores))
        return catalogue_softmax(scores, side.seen)[:, :3].sum(1).mean()

    def rows(scores, side):
        given.append(len(scores))
        return catalogue_softmax(scores, side.seen)[:, :3].sum(1, keepdim=True)

    def users(scores, side):
        given.append(type(scores))
        return scores.users.square().sum()

    wanted = plain(scores.dense(), side)
    summed = SummedMetric("first", rows, rows, lower_is_better=True)
    for metric in (from_function("first", plain, True), summed):
        torch.testing.assert_close(surrogate(metric, scores, side), wanted)
    surrogate(from_function("norm", users, True, factored=True), scores, side)
    assert given == [torch.Tensor, torch.Tensor, N, Factors]
    with_lists = replace(side, seen=Seen.of(side.seen))
    torch.testing.assert_close(plain(scores.dense(), with_lists), wanted)
    value, gradient = metric_gradient(METRICS["arp"], scores, side)
    assert gradient.shape == scores.users.shape
    assert value.dtype == torch.float64


def test_lists_of_seen_items_say_what_the_mask_says():
    _, side = problem()
    seen = Seen.of(side.seen)
    assert torch.equal(seen.dense(), side.seen)
    for index in (torch.tensor([5, 0, 5]), torch.arange(N) % 3 == 1, torch.arange(0)):
        assert torch.equal(seen[index].dense(), side.seen[index])
    part = replace(side, seen=seen).take(torch.tensor([3, 1]))
    assert torch.equal(part.mask, side.seen[[3, 1]])
    for form in (part.seen, part.mask):
        assert torch.equal(sides.unseen_items(form), (~side.seen[[3, 1]]).sum(1))


def test_one_pass_serves_all_metrics_that_are_expectations(monkeypatch):
    _, side = problem()
    scores = Factors(torch.randn(N, 4), torch.randn(M, 4))
    passes = []

    plain = parts.ops.catalogue_mean
    monkeypatch.setattr(
        parts.ops, "catalogue_mean", lambda *a, **k: passes.append(a[2].shape) or plain(*a, **k)
    )
    statistics(scores, side)
    assert len(passes) == 3  # and one each for what Gini and entropy change by
    passes.clear()
    leaf = scores.of(scores.users.requires_grad_())
    for name in ("arp", "hellinger", "hr"):
        assert surrogate(METRICS[name], leaf, side).requires_grad
    assert len(passes) == 1


@pytest.mark.parametrize("name", ["hellinger", "gini", "coverage", "mrr"])
def test_a_metric_of_some_prompts_moves_their_factors_alone(name, factored, dtype):
    scores, side = factored
    member = side.user_group != 1
    found = []
    for form in (Factors.of, lambda given, leaf: given.of(leaf).dense()):
        leaf = scores.users.clone().requires_grad_()
        value = Within(METRICS[name], member, name).surrogate(form(scores, leaf), side)
        found.append(torch.autograd.grad(value, leaf)[0])
    own, wanted = found
    assert not own[~member].any()
    assert float((own - wanted).norm() / wanted.norm()) <= DTYPES[dtype]
