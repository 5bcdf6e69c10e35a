"""Training through the engine: what peft's backward pass gives, without what it wastes."""

import pytest
import torch
from fudlr import load_run
from fudlr.config import RunConfig, merge
from fudlr.errors import UsageError
from fudlr.train import train_adapter
from torch import nn


@pytest.fixture(scope="module")
def run(run_folder):
    return load_run(run_folder)


def trained(run, through, weights=None, **changes):
    batch = -(-len(run.split.train) // 4)
    options = {"epochs": 2, "batch": batch, "through": through, **changes}
    config = run.config.train.model_copy(update=options)
    face = (run.recommender, run.engine, run.split.train)
    return train_adapter(*face, config, run.start, weights=weights)


def test_the_engine_trains_to_the_same_adapter(run):
    n = len(run.split.train)
    weights = torch.ones(n)
    weights[::7] = 0
    weights[1::7] = 0.5
    for given in (None, weights):
        theirs, ours = (trained(run, through, given) for through in ("peft", "engine"))
        moved = (theirs.theta - run.start).norm()
        assert (ours.theta - theirs.theta).norm() < 1e-3 * moved
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert (ours.theta - trained(run, "engine").theta).norm() > 0.01 * moved


def test_removed_samples_are_not_computed(run, monkeypatch):
    n = len(run.split.train)
    mask = torch.arange(n) % 3 == 0
    seen = []
    collate = run.recommender.collate

    def counted(samples, scoring=False):
        seen.extend(samples.ids.tolist())
        return collate(samples, scoring)

    monkeypatch.setattr(run.recommender, "collate", counted)
    trained(run, "engine", 1.0 - mask.float(), epochs=1)
    kept = run.split.train.ids[~mask.numpy()]
    assert sorted(seen) == sorted(kept.tolist())


def test_dropout_and_checkpointing_are_refused(run):
    layer = next(iter(run.engine._layout.layers)).module
    own = layer.lora_dropout["default"]
    layer.lora_dropout["default"] = nn.Dropout(0.1)
    try:
        with pytest.raises(UsageError, match=r"lora_dropout.*0\.1"):
            trained(run, "engine")
    finally:
        layer.lora_dropout["default"] = own
    with pytest.raises(UsageError, match="through engine"):
        merge(RunConfig(), {"train.through": "engine", "train.checkpointing": True})
