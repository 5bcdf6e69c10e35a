from pathlib import Path

import pytest
import torch
from fudlr import RunConfig, train_run
from fudlr.config import dump_config, merge

TINY = {
    "data.source": "synthetic",
    "data.k": 5,
    "model.hidden": 32,
    "model.heads": 2,
    "model.kv_heads": 1,
    "model.intermediate": 24,
    "model.pretrain_epochs": 5,
    "model.pretrain_learning_rate": 0.01,
    "lora.rank": 2,
    "train.epochs": 2,
    # The last of an epoch's batches is of one sample, so that some process has none of it.
    "train.batch": 533,
    "train.learning_rate": 0.015,
    "debias.damping": 0.03,
}


@pytest.fixture(scope="session")
def config_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "tiny.yaml"
    dump_config(path, merge(RunConfig(), TINY))
    return path


@pytest.fixture(scope="session")
def run_folder(once) -> Path:
    """A run that one process trained; tests load it, and none changes it."""
    return once("ranks", lambda folder: train_run(merge(RunConfig(), TINY), folder))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("FUDLR_QUIET", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
