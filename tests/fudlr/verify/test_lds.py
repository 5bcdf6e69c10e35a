"""The agreement score against scipy and numpy, and what must not move it."""

import numpy as np
import pytest
import torch
from fudlr.common.errors import DataError, UsageError
from fudlr.verify import Checks, agreement, random_removals, targeted_removals
from fudlr.verify.forgetting import returned
from scipy.stats import linregress, spearmanr

RANDOM = np.random.default_rng(3)
PREDICTED = RANDOM.normal(size=40)
ACTUAL = 1.3 * PREDICTED + RANDOM.normal(size=40) * 0.7 + 2


def test_one_model_gives_scipys_spearman_and_slope():
    found = agreement([PREDICTED], [ACTUAL])
    assert found.spearman == pytest.approx(spearmanr(PREDICTED, ACTUAL).statistic)
    assert found.slope == pytest.approx(linregress(PREDICTED, ACTUAL).slope)
    assert found.spearman_interval[0] < found.spearman < found.spearman_interval[1]
    assert found.slope_interval[0] < found.slope < found.slope_interval[1]
    assert found.ratio == pytest.approx(ACTUAL.sum() / PREDICTED.sum())


def test_a_turned_sign_and_a_wrong_scale_show():
    assert agreement([PREDICTED], [-ACTUAL]).spearman < -0.6
    assert agreement([PREDICTED / 7], [ACTUAL]).slope == pytest.approx(
        7 * agreement([PREDICTED], [ACTUAL]).slope
    )


def test_pooling_compares_within_models():
    """Models with far apart means must not look like agreement, nor like disagreement."""
    halves = [PREDICTED[:20], PREDICTED[20:] + 50], [ACTUAL[:20], ACTUAL[20:] - 50]
    found = agreement(*halves)
    assert found.removals == 40
    singles = [spearmanr(p, a).statistic for p, a in zip(*halves, strict=True)]
    assert found.spearman == pytest.approx(np.mean(singles))
    assert 0.9 < found.slope < 1.7


def test_the_interval_is_scipys_over_the_same_resamples_ties_included():
    random = np.random.default_rng(5)
    p = random.normal(size=12).round()
    a = (p + random.normal(size=12)).round()
    found, draws = agreement([p], [a], 40, seed=3), np.random.default_rng(3)
    picks = [draws.integers(12, size=12) for _ in range(40)]
    for name, one in (("spearman", spearmanr), ("slope", linregress)):
        values = [getattr(one(p[i], a[i]), "slope" if name == "slope" else "statistic")
                  for i in picks]  # fmt: skip
        low, high = getattr(found, f"{name}_interval")
        assert (low, high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        p = random.normal(size=30)
        low, high = agreement([p], [p + random.normal(size=30)], 200, seed).slope_interval
        covered += low < 1 < high
    assert 49 <= covered <= 60  # binomial(60, .93), the bootstrap's own coverage at 30


def test_too_few_removals_are_refused():
    with pytest.raises(DataError, match="fewer than three"):
        agreement([[1.0, 2.0]], [[1.0, 2.0]])
    with pytest.raises(DataError, match="all predictions"):
        agreement([[1.0] * 5], [list(range(5))])
    with pytest.raises(UsageError, match="lds over 2"):
        Checks(lds=2)
    with pytest.raises(UsageError, match="between 0 and 1"):
        Checks(share=1.0)


def test_removals_have_their_size_and_differ():
    masks = random_removals(100, 5, 0.29, seed=1)
    assert [int(mask.sum()) for mask in masks] == [29] * 5
    assert len({tuple(mask.tolist()) for mask in masks}) == 5
    assert torch.equal(masks[0], random_removals(100, 1, 0.29, seed=1)[0])
    with pytest.raises(UsageError, match="at least one"):
        random_removals(5, 1, 0.1, seed=0)


def test_targeted_removals_take_the_lowest_and_the_highest_in_turn():
    influence = torch.randn(200, generator=torch.Generator().manual_seed(0))
    low, high, low_again = targeted_removals(influence, 3, 0.1, seed=0)
    assert float(influence @ low) < -15 < 15 < float(influence @ high)
    assert not torch.equal(low, low_again)


def test_returned_is_0_at_the_start_and_1_at_the_trained():
    start, trained = {"arp": 10.0, "same": 1.0}, {"arp": 20.0, "same": 1.0}
    assert returned(start, start, trained) == {"arp": 0}
    assert returned(trained, start, trained) == {"arp": 1}
    assert returned({"arp": 5.0, "same": 1.0}, start, trained) == {"arp": -0.5}
