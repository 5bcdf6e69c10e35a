"""Bootstrap and permutation: equal to doing it one by one, and right about chance."""

import dataclasses

import pytest
import torch
from fudlr.common.errors import UsageError
from fudlr.evaluation import most_popular
from fudlr.metrics import (
    METRICS,
    Side,
    bootstrap,
    catalogue_softmax,
    evaluate,
    from_function,
    permutation_null,
    register,
    statistics,
    top_k,
)
from fudlr.metrics.resample import _multiplicities
from metric_cases import M, N, problem

EXPOSURE = {"coverage", "coverage_soft", "gini", "gini_soft", "entropy", "entropy_soft"}
QUANTILES = torch.tensor([0.025, 0.975], dtype=torch.float64)


def test_intervals_are_those_of_resampling_one_by_one_about_the_value():
    scores, side = problem()
    fairer = scores - 0.5 * side.popularity.log()
    found = bootstrap({"before": scores, "after": fairer}, side, n_resamples=80, seed=3)
    weights = torch.cat(list(_multiplicities(N, 80, 3)))
    assert (weights.sum(1) == N).all()
    rows = [torch.arange(N).repeat_interleave(w.long()) for w in weights]
    each = {
        name: [evaluate(matrix[r], side.take(r)) for r in rows]
        for name, matrix in (("before", scores), ("after", fairer))
    }
    value = {"before": evaluate(scores, side), "after": evaluate(fairer, side)}
    assert set(found) == {"before", "after", "after - before"}
    for key in evaluate(scores, side).keys() - EXPOSURE:
        before, after = (
            torch.tensor([e[key] for e in each[m]]).double() for m in ("before", "after")
        )
        change = value["after"][key] - value["before"][key]
        for model, values, at in (
            ("before", before, value["before"][key]),
            ("after - before", after - before, change),
        ):
            expected = torch.quantile(values - values.mean() + at, QUANTILES)
            if model == "before":
                expected = expected.clamp(*METRICS[key.split("@")[0].split("_soft")[0]].bounds)
            assert found[model][key][1:] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-5)


def test_exposure_is_the_jackknifes_with_each_prompt_left_out_in_turn():
    scores, side = problem()
    scores = scores.double()
    found = statistics(scores, side)
    every, step = torch.arange(N), 1e-4
    for name in ("coverage", "gini", "entropy"):
        metric = METRICS[name]
        for i in range(N):
            without = evaluate(scores[every != i], side.take(every != i), [metric])[name]
            exact = found.values[name] - without
            assert float(found.leave_out[name][i]) == pytest.approx(exact, abs=1e-12)
        # The smooth one is its derivative in the prompt's weight.
        weights = torch.cat([torch.eye(N), -torch.eye(N)]).double() * step + 1
        up, down = metric.soft_many(scores, side, weights).split(N)
        expected = (up - down) / (2 * step)
        torch.testing.assert_close(found.leave_out[metric.soft_key], expected, rtol=1e-5, atol=1e-8)
        draws = torch.cat(list(_multiplicities(N, 80, 3)))
        for key in (name, metric.soft_key):
            spread = draws @ found.leave_out[key]
            low, high = torch.quantile(spread - spread.mean(), QUANTILES).tolist()
            value = found.values[key]
            expected = (max(value + low, metric.bounds[0]), min(value + high, metric.bounds[1]))
            interval = bootstrap({"m": scores}, side, 80, seed=3)["m"][key]
            assert interval[1:] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("n", "m", "slope"), [(150, 300, 1.0), (200, 100, 1.5)])
def test_intervals_of_exposure_hold_the_mean_of_other_users(n, m, slope):
    """Simulated: lists drawn from a popularity law; 84 to 90% was the percentiles' on the first."""
    generator = torch.Generator().manual_seed(1)
    names, trials = ("coverage", "gini", "entropy"), 100
    metrics = [METRICS[name] for name in names]
    logits = -slope * torch.arange(1, m + 1).log()

    def draw():
        # The top K of perturbed logits are K draws without replacement (Gumbel).
        noise = torch.empty(n, m).exponential_(generator=generator).log()
        return logits - noise

    side = Side(
        popularity=torch.ones(m),
        tail=torch.zeros(m, dtype=torch.bool),
        item_groups=None,
        target=torch.zeros(n, dtype=torch.int64),
        seen=torch.zeros(n, m, dtype=torch.bool),
        user_group=torch.full((n,), -1),
        k=10,
    )
    lists = [top_k(draw(), side) for _ in range(400)]
    truth = {x.name: sum(float(x.hard(top, side)) for top in lists) / len(lists) for x in metrics}
    inside = dict.fromkeys(names, 0)
    for seed in range(trials):
        found = bootstrap({"m": draw()}, side, 200, seed, metrics)["m"]
        for name in names:
            value, low, high = found[name]
            assert low <= value <= high
            inside[name] += low <= truth[name] <= high
    # Binomial: three standard deviations below 95%, and never below by kind.
    for name in names:
        assert inside[name] / trials >= 0.95 - 3 * (0.95 * 0.05 / trials) ** 0.5, (name, inside)


def test_a_shared_softmax_is_that_of_the_scores_as_they_are():
    scores, side = problem()
    with torch.no_grad():
        first = catalogue_softmax(scores, side.seen)
        assert catalogue_softmax(scores, side.seen) is first
        assert not torch.equal(catalogue_softmax(scores, ~side.seen), first)
        catalogue_softmax(scores, side.seen)
        scores[:, 0] += 3.0
        changed = catalogue_softmax(scores, side.seen)
    expected = scores.masked_fill(side.seen, -torch.inf).softmax(1)
    torch.testing.assert_close(changed, expected)
    leaf = scores.clone().requires_grad_()
    assert catalogue_softmax(leaf, side.seen).requires_grad


def test_every_interval_holds_its_own_value():
    scores, side = problem()
    found = bootstrap({"a": scores, "b": scores.roll(1, 1), "c": scores * 0}, side, 200)
    for model in found.values():
        for key, (value, low, high) in model.items():
            assert low <= value <= high, key


def test_values_are_those_of_evaluate():
    scores, side = problem()
    found = bootstrap({"only": scores}, side, n_resamples=2)["only"]
    assert {key: interval.value for key, interval in found.items()} == pytest.approx(
        evaluate(scores, side)
    )


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


def test_without_groups_there_is_no_null():
    scores, side = problem()
    alone = dataclasses.replace(side, user_group=torch.full_like(side.user_group, -1))
    assert permutation_null(scores, alone) == {}
    with pytest.raises(UsageError, match="Ask for at least 1"):
        permutation_null(scores, side, 0)


def test_most_popular_is_the_best_unseen_counts():
    _, side = problem()
    found = most_popular(side)
    lists = []
    for seen in side.seen:
        order = sorted(range(M), key=lambda i: (-float(side.popularity[i]), i))
        lists.append([i for i in order if not seen[i]][: side.k])
    expected = sum(float(side.popularity[i]) for each in lists for i in each) / (N * side.k)
    assert found["arp"] == pytest.approx(expected)
    assert "arp_soft" not in found
