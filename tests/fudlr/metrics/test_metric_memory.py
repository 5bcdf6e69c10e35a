"""Evaluation makes no second matrix of the scores' size: users × items may be gigabytes."""

import warnings

import pytest
import torch
from fudlr.config import DataConfig
from fudlr.data import DataWarning, make_split, synthetic
from fudlr.evaluation import make_prompts, measured
from fudlr.metrics import Side, bootstrap
from fudlr.metrics.side import TILE
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

N, M = 1200, 6000  # 7 tiles


class Largest(TorchDispatchMode):
    """The most bytes that an operation gave in memory that was not there before."""

    def __init__(self, given):
        super().__init__()
        self.known, self.bytes, self.name = {x.untyped_storage().data_ptr() for x in given}, 0, ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for found in tree_leaves(out):
            if not isinstance(found, torch.Tensor):
                continue
            storage = found.untyped_storage()
            if storage.data_ptr() not in self.known and storage.nbytes() > self.bytes:
                self.bytes, self.name = storage.nbytes(), str(func)
        return out


def test_figures_and_intervals_are_made_in_tiles():
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(N, M, generator=rng)
    target = torch.randint(M, (N,), generator=rng)
    popularity = torch.randint(1, 99, (M,), generator=rng).float()
    seen = torch.zeros(N, M, dtype=torch.bool)
    side = Side(
        popularity=popularity,
        tail=popularity < 50,
        item_groups=torch.nn.functional.one_hot(torch.arange(M) % 3).float(),
        target=target,
        seen=seen,
        user_group=torch.arange(N) % 2,
        k=10,
        history_groups=torch.full((N, 3), 1 / 3),
        group_labels=("a", "b"),
    )
    losses = torch.ones(N)
    with Largest([scores, seen]) as largest:
        found = measured(scores, losses, losses, side)
        bootstrap({"before": scores, "after": scores}, side, n_resamples=10)
    assert "arp" in found.metrics
    assert largest.bytes <= 8 * TILE, largest.name  # float64


def test_scores_beyond_the_memory_are_foretold(monkeypatch):
    config = DataConfig(k=5)
    split = make_split(synthetic(60, 24, seed=2, per_user=(8, 12)), config)
    size = 4 * len(split.test) * 24
    monkeypatch.setattr("fudlr.evaluation.physical", lambda: 8 * size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_prompts(split, split.test, config)
    monkeypatch.setattr("fudlr.evaluation.physical", lambda: 8 * size - 1)
    with pytest.warns(DataWarning, match=r"data\.prompt_users=N"):
        make_prompts(split, split.test, config)
