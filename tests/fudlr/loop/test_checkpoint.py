"""A training that was killed goes on from its checkpoint, to the same end bit for bit."""

import fudlr
import pytest
import torch
from fudlr import load_run
from fudlr.common.errors import DataError
from fudlr.train.adapter import train_adapter
from fudlr.train.checkpoint import ENDING, Checkpoint


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def run(run_folder):
    return load_run(run_folder)


def trained(run, checkpoint=None, *, stop_at=None, weights=None, epochs=2):
    """Train in four batches an epoch; raise `Killed` before batch `stop_at`. With their number."""
    batch = -(-len(run.split.train) // 4)
    config = run.config.train.model_copy(update={"epochs": epochs, "batch": batch})
    steps = 0
    collate = run.recommender.collate

    def counted(samples, scoring=False):
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise Killed
        return collate(samples, scoring)

    run.recommender.collate = counted
    try:
        found = train_adapter(
            run.recommender, run.engine, run.split.train, config, run.start,
            checkpoint=checkpoint, weights=weights,
        )  # fmt: skip
    finally:
        del run.recommender.collate
    return found, steps


def test_a_killed_training_ends_where_it_would_have(run, tmp_path):
    whole, _ = trained(run)
    checkpoint = Checkpoint(tmp_path, 2, "this run")
    with pytest.raises(Killed):
        trained(run, checkpoint, stop_at=6)  # five batches are done, the state after four is kept
    assert len(list(tmp_path.glob(f"*{ENDING}"))) == 1
    resumed, steps = trained(run, checkpoint)
    assert steps == 4
    assert torch.equal(resumed.theta, whole.theta)
    assert resumed.losses == whole.losses
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_training_is_not_taken(run, tmp_path):
    with pytest.raises(Killed):
        trained(run, Checkpoint(tmp_path, 1, "this run"), stop_at=3)
    weights = torch.ones(len(run.split.train))
    weights[0] = 0
    for other, given in (("another base", None), ("this run", weights)):
        assert trained(run, Checkpoint(tmp_path, 1, other), weights=given, epochs=2)[1] == 8
    assert len(list(tmp_path.glob(f"*{ENDING}"))) == 1


def test_a_damaged_checkpoint_is_named(run, tmp_path):
    checkpoint = Checkpoint(tmp_path, 1, "this run")
    with pytest.raises(Killed):
        trained(run, checkpoint, stop_at=2)
    (path,) = tmp_path.glob(f"*{ENDING}")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=path.name):
        trained(run, checkpoint)


def test_train_and_verify_resume_by_the_option(run_folder, tmp_path, monkeypatch):
    """`train.checkpoint` keeps the state beside the run, and beside the kept retrainings."""
    config = load_run(run_folder).config
    options = {"epochs": 2, "batch": -(-len(load_run(run_folder).split.train) // 4)}
    config = config.model_copy(
        update={
            "train": config.train.model_copy(update={**options, "checkpoint": 1}),
            "record": config.record.model_copy(update={"epochs": "none"}),
            "model": config.model.model_copy(update={"pretrain_epochs": 0}),
        }
    )
    clear = Checkpoint.clear

    def killed(self, key):
        raise Killed

    monkeypatch.setattr(Checkpoint, "clear", killed)
    with pytest.raises(Killed):
        fudlr.train_run(config, tmp_path / "run")
    (kept,) = tmp_path.iterdir()
    assert kept.name.endswith(ENDING)
    monkeypatch.setattr(Checkpoint, "clear", clear)
    called = []
    collate = type(load_run(run_folder).recommender).collate
    monkeypatch.setattr(
        type(load_run(run_folder).recommender),
        "collate",
        lambda self, *given: called.append(1) or collate(self, *given),
    )
    resumed = fudlr.train_run(config, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert len(resumed.losses) == 2
    # All eight batches were done: pretraining aside, none was collated again.
    assert called == []
