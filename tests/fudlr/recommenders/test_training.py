"""Training through the engine: what peft's backward pass gives, without what it wastes."""

import numpy as np
import pytest
import torch
from fudlr.common import batches
from fudlr.common.errors import UsageError
from fudlr.config import RunConfig, TrainConfig, merge
from fudlr.train.adapter import CHECKED, train_adapter
from prompt_models import adapted, base, recommender, split
from torch import nn

from fudlr_ext import Engine

N = 24


@pytest.fixture(scope="module")
def made():
    found = recommender("titles", split(), adapted(base(), ("q_proj", "v_proj")))
    found.engine = Engine(found.model)
    found.start = found.engine.theta()
    return found


def trained(made, through, weights=None, epochs=2):
    config = TrainConfig(epochs=epochs, batch=8, through=through, learning_rate=1e-3)
    samples = split().train.take(np.arange(N))
    return train_adapter(made, made.engine, samples, config, made.start, weights=weights)


def test_the_engine_trains_to_the_same_adapter(made, monkeypatch):
    """Whole batches, a few samples at a time, and weights of which some are zero."""
    weights = torch.ones(N)
    weights[::7] = 0
    weights[1::7] = 0.5
    for given, tokens in ((None, 10**4), (weights, 1)):
        monkeypatch.setattr(batches, "ENGINE_TOKENS", tokens)
        theirs, ours = (trained(made, through, given) for through in ("peft", "engine"))
        moved = (theirs.theta - made.start).norm()
        assert (ours.theta - theirs.theta).norm() < 1e-3 * moved
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert (ours.theta - trained(made, "engine").theta).norm() > 0.01 * moved


def test_removed_samples_are_not_computed(made, monkeypatch):
    mask = torch.arange(N) % 3 == 0
    seen = []
    collate = made.collate

    def counted(samples, scoring=False):
        seen.extend(samples.ids.tolist())
        return collate(samples, scoring)

    monkeypatch.setattr(made, "collate", counted)
    trained(made, "engine", 1.0 - mask.float(), epochs=1)
    kept = split().train.ids[:N][~mask.numpy()]
    assert sorted(seen) == sorted([*kept, *kept[:CHECKED]])  # the first of them are checked before


def test_dropout_and_checkpointing_are_refused(made):
    layer = next(iter(made.engine._layout.layers)).module
    own = layer.lora_dropout["default"]
    layer.lora_dropout["default"] = nn.Dropout(0.1)
    try:
        with pytest.raises(UsageError, match=r"lora_dropout.*0\.1"):
            trained(made, "engine")
    finally:
        layer.lora_dropout["default"] = own
    with pytest.raises(UsageError, match="through engine"):
        merge(RunConfig(), {"train.through": "engine", "train.checkpointing": True})
