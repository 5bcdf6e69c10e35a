"""Candidate strategies pick what their names say, and as many as were asked for."""

import math

import pytest
import torch
from fudlr.common.errors import UsageError
from fudlr.influence.candidates import STRATEGIES, Candidacy, choose_candidates, sample_candidates

N = 1003


def never():
    raise AssertionError("the losses cost a forward pass, and were not asked for")


@pytest.fixture
def known():
    """Popularity with many ties, three groups of which one is small, and users without one."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(0, 2, (N,), generator=generator)
    groups[::50] = 2
    groups[1::10] = -1
    return Candidacy(torch.randint(1, 60, (N,), generator=generator), groups, never)


def with_losses(known):
    losses = torch.rand(N, generator=torch.Generator().manual_seed(1))
    return Candidacy(known.popularity, known.groups, lambda: losses), losses


@pytest.mark.parametrize("share", [0.001, 0.05, 0.1, 0.2, 0.29])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_share_is_exact_and_indices_rise(known, strategy, share):
    whole = with_losses(known)[0] if strategy == "loss" else known
    index = choose_candidates(strategy, share, 0, whole)
    assert len(index) == math.ceil(share * N - 1e-9)
    assert bool((index.diff() > 0).all())
    assert 0 <= int(index.min()) <= int(index.max()) < N


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_what_is_drawn_hangs_on_the_seed(known, strategy):
    whole = with_losses(known)[0]
    first, again, other = (choose_candidates(strategy, 0.1, seed, whole) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (strategy in ("popularity", "loss"))


def test_random_is_the_plain_sample(known):
    found = choose_candidates("random", 0.1, 5, known)
    assert torch.equal(found, sample_candidates(N, 0.1, 5))


def test_popularity_takes_the_most_popular_targets(known):
    index = choose_candidates("popularity", 0.1, 0, known)
    others = torch.ones(N, dtype=torch.bool).index_fill(0, index, False)
    edge = known.popularity[index].min()
    assert edge >= known.popularity[others].max()
    tied = (known.popularity == edge).nonzero().flatten()
    taken = torch.isin(tied, index)
    # Of equally popular ones the first in the data's order.
    assert bool((taken.int().diff() <= 0).all())


def test_loss_takes_the_samples_that_are_fitted_worst(known):
    whole, losses = with_losses(known)
    index = choose_candidates("loss", 0.1, 0, whole)
    others = torch.ones(N, dtype=torch.bool).index_fill(0, index, False)
    assert losses[index].min() > losses[others].max()


def test_stratified_takes_alike_from_each_tenth_of_popularity(known):
    index = choose_candidates("stratified", 0.1, 0, known)
    place = torch.empty(N, dtype=torch.int64)
    place[known.popularity.argsort(stable=True)] = torch.arange(N)
    counts = torch.bincount(place[index] * 10 // N, minlength=10)
    assert int(counts.max()) - int(counts.min()) <= 1
    assert int(counts.min()) >= 10


def test_group_takes_as_many_from_each_and_all_of_a_small_one(known):
    groups = known.groups
    few = torch.bincount(groups[choose_candidates("group", 0.03, 0, known)] + 1, minlength=4)
    assert few.tolist()[0] == 0
    assert max(few.tolist()[1:]) - min(few.tolist()[1:]) <= 1
    many = torch.bincount(groups[choose_candidates("group", 0.2, 0, known)] + 1, minlength=4)
    small = int((groups == 2).sum())
    assert many[3] == small
    assert abs(int(many[1]) - int(many[2])) <= 1


def test_all_is_no_choice(known):
    assert choose_candidates("all", 1.0, 0, known) is None


def test_what_cannot_be_chosen_is_refused(known):
    with pytest.raises(UsageError, match="no such strategy"):
        choose_candidates("newest", 0.1, 0, known)
    bare = Candidacy(known.popularity, torch.full((N,), -1), never)
    with pytest.raises(UsageError, match="no groups"):
        choose_candidates("group", 0.1, 0, bare)
