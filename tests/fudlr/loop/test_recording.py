"""A run's store: made while it trains or in a pass after, and refused for another adapter."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fudlr import load_run, lora, train_run
from fudlr.common.errors import UsageError
from fudlr.config import merge
from fudlr.gradients import record_rows
from fudlr.gradients.recording import shortfall
from fudlr.gradients.store import Recorder, RecordingWarning, Store, StoreError, StoreWriter
from fudlr.gradients.store.batch import BatchGradients
from fudlr.pipeline.evidence import gather
from fudlr.pipeline.plan import prepare
from fudlr.record import record_run

from fudlr_ext.backward_hook import BackwardHook
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
    # Stale by the last of twelve epochs at a falling rate, and rounded.
    assert torch.cosine_similarity(stored, exact, dim=1).mean() > 0.99
    assert float(stored.norm() / exact.norm()) == pytest.approx(1, abs=0.02)
    assert torch.equal(store.ids.sort().values, ids.sort().values)
    assert store.steps == 12 * -(-len(ids) // 400)
    assert store.audit["cosine"] > 0.99
    assert store.audit["energy"] > 0.85  # of .9 that were asked for
    kept = store.projection().energy_kept(gradients)
    assert store.audit["energy"] == pytest.approx(kept, abs=0.05)


def test_a_shortfall_of_energy_is_said(run, monkeypatch):
    store = run.store()
    assert shortfall(store, run.config) == ""
    store.manifest.audit["energy"] = 0.71
    said = shortfall(store, run.config)
    assert said.startswith("The store keeps 71.0% of the gradients' energy where 90% was asked for")
    monkeypatch.setattr(run, "store", lambda: store)
    evidence = gather(prepare(run, run.config.debias))
    assert evidence.warnings[0] == said


def test_a_scoring_pass_gives_the_rows_at_the_adapter_itself(run, gradients, tmp_path):
    config = run.config.record.model_copy(update={"dtype": "float32"})
    store = record_run(run, tmp_path / "store", config)
    exact = store.projection().project(gradients)
    ids = torch.from_numpy(run.split.train.ids)
    torch.testing.assert_close(store.read(ids), exact, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(store.mean_gradient(), gradients.mean(0), rtol=1e-4, atol=1e-6)
    assert store.audit["error"] < 1e-5
    assert not store.whole_training


def test_a_killed_scoring_pass_goes_on_to_the_same_files(run, tmp_path, monkeypatch):
    run = replace(run, config=merge(run.config, {"train.batch": 128}))
    options = {"config": run.config.record, "shard_bytes": 1}
    record_run(run, tmp_path / "whole", **options)
    append, calls = StoreWriter.append, []

    def killed(self, *given, **more):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        append(self, *given, **more)

    monkeypatch.setattr(StoreWriter, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        record_run(run, tmp_path / "store", **options)
    with pytest.raises(StoreError, match="not finished"):
        Store.open(tmp_path / "store")
    record_run(run, tmp_path / "store", **options)
    assert len(calls) == 5 + -(-len(run.split.train) // 128) - 4
    for path in (tmp_path / "whole").glob("*.*"):
        assert path.read_bytes() == (tmp_path / "store" / path.name).read_bytes(), path.name


def full(monkeypatch):
    free = SimpleNamespace(free=9)
    monkeypatch.setattr("fudlr.gradients.store.steps.shutil.disk_usage", lambda _: free)
    return "MB are free"


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


BRIEF = {
    "data.train_samples": 300, "model.pretrain_epochs": 0, "train.epochs": 2,
    "train.batch": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def brief(tiny_config):
    return merge(tiny_config, BRIEF)


@pytest.fixture(scope="module")
def alone(brief, tmp_path_factory):
    """What is trained without a recording, by the way that makes the gradients."""
    trained = {}
    for through in ("peft", "engine"):
        config = merge(brief, {"record.epochs": "none", "train.through": through})
        trained[through] = train_run(config, tmp_path_factory.mktemp("alone") / "run")
        assert trained[through].store() is None
    return trained


def same(found, alone):
    assert torch.equal(found.theta, alone.theta)
    assert found.losses == alone.losses


@pytest.mark.parametrize("through", ["peft", "engine"])
def test_recording_does_not_change_what_is_trained(tmp_path, brief, alone, through):
    found = train_run(merge(brief, {"train.through": through}), tmp_path / "run")
    same(found, alone[through])
    assert found.store().whole_training


@pytest.mark.parametrize("hindrance", [full, two_uses], ids=lambda f: f.__name__)
def test_a_training_that_cannot_be_recorded(tmp_path, brief, alone, monkeypatch, hindrance):
    said = hindrance(monkeypatch)
    with pytest.warns(RecordingWarning, match=f"goes on without a store: .*{said}"):
        found = train_run(brief, tmp_path / "run")
    same(found, alone["peft"])
    assert found.store() is None
    assert not list((tmp_path / "run").glob("store*"))
    monkeypatch.setattr("fudlr.run.folder.train_adapter", None)  # not reached
    with pytest.raises((UsageError, StoreError, EngineError), match=said):
        train_run(brief, tmp_path / "never", required=True)
    assert not (tmp_path / "never").exists()


def late(monkeypatch):
    """Rows that are not the samples, within the recording and not in the rehearsal before it."""
    opened = BackwardHook.open

    def fail(self, n, taker):
        opened(self, n + hasattr(taker, "late"), taker)

    monkeypatch.setattr(BackwardHook, "open", fail)
    monkeypatch.setattr(BatchGradients, "late", True, raising=False)
    monkeypatch.setattr("fudlr.gradients.recording.rehearse", lambda *_: None)
    return "rows are not the samples"


def broken(owner, name):
    def fails(monkeypatch):
        def fail(*args, **more):
            raise StoreError("a shard was to be written", "the disk is full", "Make room")

        monkeypatch.setattr(owner, name, fail)
        return "the disk is full"

    return fails


@pytest.mark.parametrize(
    ("fails", "through"),
    [
        (late, "peft"),
        (broken(Recorder, "finish"), "peft"),
        (broken(StoreWriter, "append"), "engine"),
    ],
)
def test_what_fails_later_ends_the_recording_alone(tmp_path, brief, alone, fails, through):
    with pytest.MonkeyPatch.context() as patch:
        said = fails(patch)
        with pytest.warns(RecordingWarning, match=f"{said}.*`fudlr record`"):
            found = train_run(merge(brief, {"train.through": through}), tmp_path / "run")
    same(found, alone[through])
    assert not list((tmp_path / "run").glob("store*"))
    assert record_run(load_run(tmp_path / "run")).n == len(found.split.train)


def test_an_audit_that_fails_leaves_training_and_store_as_they_are(tmp_path, brief, monkeypatch):
    def fail(*_):
        raise RuntimeError("the figures were lost")

    monkeypatch.setattr("fudlr.gradients.recording.audit_rows", fail)
    with pytest.warns(RecordingWarning, match=r"store is whole, \d+ rows, .*were lost.*`fudlr rec"):
        found = train_run(brief, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.store().n == len(found.split.train)
    assert run.store().audit == {}
    with pytest.warns(RecordingWarning, match="were lost"):
        record_run(run)
    monkeypatch.undo()
    assert record_run(run).audit["samples"] == 64
