"""A run's store: made while it trains or in a pass after, and refused for another adapter."""

from __future__ import annotations

import shutil

import pytest
import torch
from fudlr import load_run, lora, train_run
from fudlr.common.errors import UsageError
from fudlr.config import merge
from fudlr.gradients.store import Recorder, RecordingWarning, StoreError, fitting, record_rows
from fudlr.record import record_run

from fudlr_ext.errors import EngineError


@pytest.fixture(scope="module")
def run(run_folder):
    return load_run(run_folder)


@pytest.fixture(scope="module")
def gradients(run):
    """∇ℓ_i at θ*, in full, [n, d]."""
    run.engine.load(run.theta)
    batches = list(run.recommender.batches(run.split.train, 256))
    return record_rows(run.engine, run.recommender.forward, run.recommender.loss, batches).matrix


def test_training_leaves_a_store_of_almost_the_rows_at_the_end(run, gradients):
    store = run.store()
    ids = torch.from_numpy(run.split.train.ids)
    exact = store.projection().project(gradients)
    stored = store.read(ids)
    # Stale by the last of twenty epochs at a falling rate, and rounded to bfloat16: .998 measured.
    assert torch.cosine_similarity(stored, exact, dim=1).mean() > 0.99
    assert float(stored.norm() / exact.norm()) == pytest.approx(1, abs=0.02)
    facts = store.facts()
    assert torch.equal(facts.ids.sort().values, ids.sort().values)
    assert float(facts.losses.mean()) == pytest.approx(run.losses[-1], rel=1e-5)
    audit = store.audit()
    assert audit["cosine"] > 0.99
    assert 0.5 < audit["energy"] < 1
    assert audit["energy"] == pytest.approx(store.projection().energy_kept(gradients), abs=0.1)


def test_recording_does_not_change_what_is_trained(run, tmp_path, tiny_config):
    config = merge(tiny_config, {"record.ride": False})
    alone = train_run(config, tmp_path / "run")
    assert torch.equal(alone.theta, run.theta)
    assert alone.losses == run.losses
    assert alone.store() is None


def test_a_scoring_pass_gives_the_rows_at_the_adapter_itself(run, gradients, tmp_path):
    config = run.config.record.model_copy(update={"dtype": "float32"})
    store = record_run(run, tmp_path / "store", config)
    exact = store.projection().project(gradients)
    ids = torch.from_numpy(run.split.train.ids)
    torch.testing.assert_close(store.read(ids), exact, rtol=1e-4, atol=1e-6)
    facts = store.facts()
    torch.testing.assert_close(facts.mean_gradient, gradients.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(facts.loss_of(ids), run.recommender.losses(run.split.train, 256))
    assert store.audit()["error"] < 1e-5
    shutil.rmtree(tmp_path / "store")


def test_another_adapter_is_refused_with_the_reason(run_folder, run):
    other = load_run(run_folder, run_folder / "start")
    with pytest.raises(StoreError, match="made from another adapter"):
        other.store()
    with pytest.raises(StoreError, match="another adapter"):
        record_run(other)


def test_an_epoch_that_is_not_there_is_refused_before_training(tmp_path, tiny_config):
    config = merge(tiny_config, {"record.epoch": 99, "model.pretrain_epochs": 0})
    with pytest.raises(UsageError, match=r"epoch 99 .*the training has 20"):
        train_run(config, tmp_path / "run")


def too_large(monkeypatch):
    monkeypatch.setattr(fitting, "HELD_BYTES", 10_000)
    return "GiB"


def dropout(monkeypatch):
    attach = lora.attach

    def attach_and_drop(*args):
        model = attach(*args)
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.1
        return model

    monkeypatch.setattr(lora, "attach", attach_and_drop)
    return "dropout of"


def two_uses(monkeypatch):
    attach = lora.attach

    def attach_and_pack(*args):
        model = attach(*args)
        projection = model.base_model.model.model.layers[0].mlp.down_proj
        forward = projection.forward
        projection.forward = lambda x: forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return model

    monkeypatch.setattr(lora, "attach", attach_and_pack)
    return "rows are not the samples"


BRIEF = {"model.pretrain_epochs": 0, "train.epochs": 2}


@pytest.fixture(scope="module")
def alone(tiny_config, tmp_path_factory):
    """A brief training that was never to be recorded."""
    brief = merge(tiny_config, {**BRIEF, "record.ride": False})
    return train_run(brief, tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.parametrize("hindrance", [too_large, dropout, two_uses], ids=lambda f: f.__name__)
def test_a_training_that_cannot_be_recorded(tmp_path, tiny_config, monkeypatch, hindrance):
    said = hindrance(monkeypatch)
    brief = merge(tiny_config, BRIEF)
    alone = train_run(merge(brief, {"record.ride": False}), tmp_path / "alone")
    with pytest.warns(RecordingWarning, match=f"goes on without a store: .*{said}"):
        found = train_run(brief, tmp_path / "run")
    assert torch.equal(found.theta, alone.theta)
    assert found.store() is None
    assert not list((tmp_path / "run").glob("store*"))
    monkeypatch.setattr("fudlr.run.folder.train_adapter", None)  # not reached
    with pytest.raises((UsageError, EngineError), match=said):
        train_run(merge(brief, {"record.ride": True}), tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("ride", [None, True], ids=["by default", "asked for"])
@pytest.mark.parametrize("fails", ["_begin", "_take", "_fit", "finish", "an arrival"])
def test_what_fails_later_ends_the_recording_alone(
    tmp_path, tiny_config, monkeypatch, *, alone, fails, ride
):
    brief = merge(tiny_config, BRIEF)

    def fail(*args):
        raise StoreError("a shard was to be written", "the disk is full", "Make room")

    def begin_and_count_wrong(self, begin=Recorder._begin):
        begin(self)
        opened = self._tap.open
        self._tap.open = lambda n, taker: opened(n + 1, taker)

    if fails == "an arrival":
        said, fails, fail = "rows are not the samples", "_begin", begin_and_count_wrong
    else:
        said = "the disk is full"
    monkeypatch.setattr(Recorder, fails, fail)
    with pytest.warns(RecordingWarning, match=f"{said}.*`fudlr record`"):
        found = train_run(merge(brief, {"record.ride": ride}), tmp_path / "run")
    assert torch.equal(found.theta, alone.theta)
    assert found.losses == alone.losses
    assert not list((tmp_path / "run").glob("store*"))
    monkeypatch.undo()
    assert len(record_run(load_run(tmp_path / "run")).ids) == len(found.split.train)


@pytest.mark.parametrize("error", [RuntimeError, ValueError, StoreError])
def test_an_audit_that_fails_leaves_training_and_store_as_they_are(
    tmp_path, tiny_config, monkeypatch, error
):
    def fail(*_):
        raise error("the figures", "were lost", "Look")

    monkeypatch.setattr("fudlr.gradients.recording.audit_rows", fail)
    with pytest.warns(RecordingWarning, match=r"store is whole, \d+ rows, .*were lost.*`fudlr rec"):
        found = train_run(merge(tiny_config, BRIEF), tmp_path / "run")
    store = load_run(tmp_path / "run").store()
    assert store.n == len(found.split.train)
    assert store.audit() is None
    with pytest.warns(RecordingWarning, match="were lost"):
        record_run(load_run(tmp_path / "run"))
    monkeypatch.undo()
    assert record_run(load_run(tmp_path / "run")).audit()["samples"] == 64


@pytest.mark.parametrize(
    "wrong",
    [{"record.energy": None}, {"record.projection": "gaussian"}, {"record.dtype": "float16"}],
)
def test_options_that_do_not_fit(tiny_config, wrong):
    with pytest.raises(UsageError, match="record"):
        merge(tiny_config, wrong)
