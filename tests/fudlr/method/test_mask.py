"""Scores and masks: the threshold rule is the optimum that gradient descent finds."""

from fractions import Fraction

import pytest
import torch
from fudlr.common.errors import NumericalError, UsageError
from fudlr.influence.mask import gradient_descent_mask, threshold_mask
from fudlr.influence.scores import scores
from fudlr.influence.threshold import select
from fudlr.pipeline.evidence import sample_candidates


def normal(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_scores_weigh_equal_spreads():
    s, a = normal(500), 1e-6 * normal(500, 1)
    got = scores(s, a, 2.0, 3.0, 0.5)
    expected = 2 * s / s.std(correction=0) + 3 * a / a.std(correction=0) + 0.5
    assert torch.allclose(got, expected)
    assert torch.allclose(scores(s, a, 1.0, 0.0), s / s.std(correction=0))


def test_threshold_takes_the_lowest_below_zero():
    score = torch.tensor([0.3, -0.1, -0.5, 0.0, -0.3, 0.2, 0.1, 0.4, 0.5, 0.6])
    mask = threshold_mask(score, 0.2)
    assert mask.remove.nonzero().flatten().tolist() == [2, 4]
    assert mask.removed == 2
    assert mask.warnings == []
    assert threshold_mask(score, 1.0).remove.nonzero().flatten().tolist() == [1, 2, 4]


def test_budget_counts_are_exact():
    for n in (10, 30, 100, 1000):
        for budget in (0.1, 0.29, 0.3, 0.57, 0.7):
            mask = threshold_mask(-torch.ones(n), budget)
            assert mask.removed == int(Fraction(str(budget)) * n)


def test_equal_scores_leave_in_order():
    assert threshold_mask(-torch.ones(10), 0.3).remove.nonzero().flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("budget", [0.001, 0.01, 0.29, 1.0])
def test_a_selection_in_parts_removes_the_same(budget, dtype):
    """Scores that are all different, few different ones, zeros of both signs, and far apart."""
    for seed, n in enumerate((1, 40, 70_000)):
        score = normal(n, seed).to(dtype)
        signed = torch.where(score > 0, 0.0, -0.0).to(dtype)
        for each in (score, (2 * score).round(), signed, score**9, score - 9, score + 9):
            ids = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
            parts = [(part, each[part]) for part in ids.split(999)]
            found = select(lambda parts=parts: parts, budget)
            rule = threshold_mask(each, budget)
            assert torch.equal(found.of(torch.arange(n), each), rule.remove)
            assert (found.removed, found.samples) == (rule.removed, n)


def test_a_selection_refuses_what_is_no_score():
    with pytest.raises(NumericalError, match="sample"):
        select(lambda: [(torch.arange(2), torch.tensor([0.0, torch.nan]))], 0.1)
    with pytest.raises(UsageError):
        select(list, 0.0)


@pytest.mark.parametrize("shift", [-5.0, 0.0, 1.0])
@pytest.mark.parametrize("budget", [0.01, 0.2, 1.0])
def test_gradient_descent_agrees_on_every_sample(budget, shift):
    for seed, n in enumerate((10, 1000)):
        for score in (normal(n, seed) + shift, normal(n, seed) ** 3 + shift):
            rule, found = threshold_mask(score, budget), gradient_descent_mask(score, budget)
            assert torch.equal(rule.remove, found.remove)
            assert found.soft is not None
            assert float(found.soft.sum()) <= budget * n + 1e-6


def test_candidates_are_a_seeded_share():
    index = sample_candidates(1000, 0.1, seed=3)
    assert len(index) == len(set(index.tolist())) == 100
    assert torch.equal(index, index.sort().values)
    assert torch.equal(index, sample_candidates(1000, 0.1, seed=3))
    assert not torch.equal(index, sample_candidates(1000, 0.1, seed=4))
    assert torch.equal(sample_candidates(7, 1.0, 0), torch.arange(7))
    assert len(sample_candidates(7, 0.001, 0)) == 1


def test_warnings():
    score = normal(100)
    assert threshold_mask(score, 0.2).warnings == []
    assert "20%" in threshold_mask(score, 0.25).warnings[0]
    assert "no score is below 0" in threshold_mask(score.abs() + 1, 0.1).warnings[0]
    assert "less than one" in threshold_mask(score, 0.001).warnings[0]
    assert gradient_descent_mask(score, 0.25).warnings == threshold_mask(score, 0.25).warnings


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_bad_budget(budget):
    for rule in (threshold_mask, gradient_descent_mask):
        with pytest.raises(UsageError, match="budget"):
            rule(normal(10), budget)


def test_influence_that_is_not_finite_names_the_sample():
    s, a = normal(10), normal(10, 1)
    a[7] = torch.nan
    with pytest.raises(NumericalError, match="sample 7"):
        scores(s, a)
    with pytest.raises(NumericalError, match="sample 7"):
        threshold_mask(a, 0.1)
    with pytest.raises(NumericalError, match="same for all"):
        scores(s, torch.full_like(s, 0.1))
