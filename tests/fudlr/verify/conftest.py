"""A run so small that it is retrained in about a second."""

from pathlib import Path

import pytest
from fudlr import RunConfig, train_run
from fudlr.config import merge

SMALL = {
    "data.source": "synthetic",
    "data.k": 5,
    "data.max_train_per_user": 4,
    "data.window": 8,
    "model.hidden": 16,
    "model.layers": 1,
    "model.heads": 2,
    "model.kv_heads": 1,
    "model.intermediate": 16,
    # Enough training for removals to have an effect above the noise.
    "model.pretrain_epochs": 20,
    "model.pretrain_learning_rate": 0.01,
    "lora.rank": 2,
    "train.epochs": 12,
    "train.learning_rate": 0.01,
    "train.batch": 128,
    "debias.damping": 0.03,
}


@pytest.fixture(scope="session")
def run_folder(once) -> Path:
    """A trained run on disk; tests load it, and none changes it."""
    return once("verify", lambda folder: train_run(merge(RunConfig(), SMALL), folder))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("FUDLR_QUIET", "1")
