"""Bootstrap and permutation: equal to doing it one by one, and right about chance."""

import dataclasses

import pytest
import torch
from fudlr.common.errors import UsageError
from fudlr.metrics import (
    METRICS,
    bootstrap,
    evaluate,
    from_function,
    permutation_null,
    register,
    top_k,
)
from fudlr.metrics.resample import _multiplicities
from metric_cases import M, N, problem


def test_intervals_are_those_of_resampling_one_by_one():
    scores, side = problem()
    fairer = scores - 0.5 * side.popularity.log()
    found = bootstrap({"before": scores, "after": fairer}, side, n_resamples=80, seed=3)
    weights = _multiplicities(N, 80, 3)
    assert (weights.sum(1) == N).all()
    rows = [torch.arange(N).repeat_interleave(w.long()) for w in weights]
    each = {
        name: [evaluate(matrix[r], side.take(r)) for r in rows]
        for name, matrix in (("before", scores), ("after", fairer))
    }
    assert set(found) == {"before", "after", "after - before"}
    for key in evaluate(scores, side):
        before, after = (torch.tensor([e[key] for e in each[m]]) for m in ("before", "after"))
        quantiles = before.new_tensor([0.025, 0.975])
        for model, values in (("before", before), ("after - before", after - before)):
            expected = torch.quantile(values, quantiles).tolist()
            assert found[model][key][1:] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_values_are_those_of_evaluate():
    scores, side = problem()
    found = bootstrap({"only": scores}, side, n_resamples=2)["only"]
    assert {key: interval.value for key, interval in found.items()} == pytest.approx(
        evaluate(scores, side)
    )


def test_a_model_does_not_differ_from_itself():
    scores, side = problem()
    found = bootstrap({"a": scores, "b": scores.clone()}, side, n_resamples=20)["b - a"]
    assert all(interval == (0, 0, 0) for interval in found.values())


def test_a_metric_that_is_no_sum_is_resampled_too():
    scores, side = problem()
    before = dict(METRICS)
    try:
        own = register(
            from_function(
                "own",
                lambda s, side: s.mean(),
                True,
                hard=lambda top, side: side.popularity[top].mean(),
            )
        )
        soft = register(from_function("soft", lambda s, side: s.mean(), True))
        found = bootstrap({"m": scores}, side, 50, metrics=[own, soft, METRICS["arp"]])["m"]
    finally:
        METRICS.clear()
        METRICS.update(before)
    assert found["own"] == pytest.approx(found["arp"])
    assert "soft" not in found


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_resample(n):
    scores, side = problem()
    few = torch.arange(n)
    with pytest.raises(UsageError, match="nothing to draw"):
        bootstrap({"m": scores[few]}, side.take(few))


def test_permutation_is_that_of_one_by_one():
    scores, side = problem()
    found = permutation_null(scores, side, n_permutations=200, seed=1)
    assert set(found) == {"hellinger", "hellinger@4", "dp", "dp@4", "hit_gap", "hit_gap@4"}
    measured = evaluate(scores, side)
    generator = torch.Generator().manual_seed(99)
    kept = (side.user_group >= 0).nonzero()[:, 0]
    gaps = []
    for _ in range(200):
        group = side.user_group.clone()
        group[kept] = group[kept[torch.randperm(len(kept), generator=generator)]]
        permuted = dataclasses.replace(side, user_group=group)
        gaps.append(float(METRICS["hellinger"].hard(top_k(scores, side), permuted)))
    for key, null in found.items():
        assert null.observed == pytest.approx(measured[key])
        assert null.low <= null.mean <= null.high
    own = torch.tensor(gaps)
    error = float(own.std()) / 200**0.5
    assert found["hellinger@4"].mean == pytest.approx(float(own.mean()), abs=5 * error)


def test_a_planted_gap_is_found_and_chance_is_not():
    _, side = problem()
    planted = 4 * side.item_groups[:, side.user_group.clamp_min(0)].T
    assert permutation_null(planted, side, 400)["hellinger"].p_value < 0.01
    p_values = []
    for seed in range(40):
        noise = torch.randn(N, M, generator=torch.Generator().manual_seed(seed))
        p_values.append(permutation_null(noise, side, 99, seed)["dp@4"].p_value)
    assert 0.3 < sum(p_values) / 40 < 0.7
    assert sum(p < 0.05 for p in p_values) <= 8


def test_all_the_same_is_no_evidence():
    scores, side = problem()
    free = dataclasses.replace(side, seen=torch.zeros_like(side.seen))
    null = permutation_null(torch.zeros_like(scores), free, 50)["dp"]
    assert null.observed == pytest.approx(0, abs=1e-12)


def test_without_groups_there_is_no_null():
    scores, side = problem()
    alone = dataclasses.replace(side, user_group=torch.full_like(side.user_group, -1))
    assert permutation_null(scores, alone) == {}
    with pytest.raises(UsageError, match="Ask for at least 1"):
        permutation_null(scores, side, 0)


def test_same_seed_same_answer():
    scores, side = problem()
    assert bootstrap({"m": scores}, side, 50, seed=2) == bootstrap({"m": scores}, side, 50, seed=2)
    assert bootstrap({"m": scores}, side, 50, seed=2) != bootstrap({"m": scores}, side, 50, seed=3)
