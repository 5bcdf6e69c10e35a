from pathlib import Path

import pytest
import torch
from fudlr import RunConfig, train_run
from fudlr.config import merge

TINY = {
    "data.source": "synthetic",
    "data.k": 5,
    "model.hidden": 32,
    "model.heads": 2,
    "model.kv_heads": 1,
    "model.intermediate": 24,
    # Enough training for removals to have an effect above the noise.
    "model.pretrain_epochs": 25,
    "model.pretrain_learning_rate": 0.01,
    "lora.rank": 2,
    # Few and long steps: what is looked at is where they end.
    "train.epochs": 12,
    "train.batch": 400,
    "train.learning_rate": 0.015,
    "debias.damping": 0.03,
}


@pytest.fixture(scope="session")
def tiny_config():
    return merge(RunConfig(), TINY)


@pytest.fixture(scope="session")
def run_folder(once, tiny_config) -> Path:
    """A trained run on disk; tests load it, and none changes it."""
    return once("loop", lambda folder: train_run(tiny_config, folder))


@pytest.fixture(scope="session")
def popular():
    """popular(run): a mask [n] of the tenth of the samples with the most popular targets."""

    def mask_of(run) -> torch.Tensor:
        share = torch.from_numpy(run.split.popularity[run.split.train.target].copy())
        mask = torch.zeros(len(share))
        mask[share.argsort(descending=True, stable=True)[: len(share) // 10]] = 1
        return mask

    return mask_of


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("FUDLR_QUIET", "1")
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
