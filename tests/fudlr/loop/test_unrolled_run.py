"""A run's training recorded and unrolled: against real retraining, resumed, chosen and refused."""

import shutil

import fudlr
import pytest
import torch
from fudlr import load_run, train_run
from fudlr.common.errors import DataError, UsageError
from fudlr.common.progress import StageClock
from fudlr.config import merge
from fudlr.influence.unroll import Unrolled
from fudlr.pipeline.evidence import gather, solvers
from fudlr.pipeline.plan import prepare, with_options
from fudlr.pipeline.unrolled import unrolled_run
from fudlr.train.checkpoint import Checkpoint
from fudlr.verify import removal, retrain

SHORT = {"train.epochs": 2, "train.batch": 32, "train.through": "engine", "debias.damping": None}


@pytest.fixture(scope="module")
def folder(once, tiny_config):
    return once("unrolled", lambda folder: train_run(merge(tiny_config, SHORT), folder))


def test_steps_are_the_trainings_and_training_is_the_same(folder, tiny_config, tmp_path):
    run = load_run(folder)
    plain = train_run(merge(tiny_config, {**SHORT, "record.epochs": "none"}), tmp_path / "plain")
    assert torch.equal(run.theta, plain.theta)
    store = run.store()
    assert store.whole_training
    seen = torch.cat([store.step(t).ids for t in range(store.steps)])
    ids = torch.from_numpy(run.split.train.ids)
    assert torch.equal(seen.sort().values, ids.repeat_interleave(2).sort().values)
    first, engine = store.step(0), run.engine
    engine.load(run.start)
    place = torch.searchsorted(ids.sort().values, first.ids)
    data = run.recommender.collate(run.split.train.take(ids.argsort()[place].numpy()))
    rows = engine.sample_grads(run.recommender.forward, run.recommender.loss, data)
    assert torch.allclose(first.mean, rows.mean(0), rtol=1e-4, atol=1e-7)
    sketched = store.projection(first.segment).project(rows)
    assert torch.allclose(first.rows.float(), sketched, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("through", ["peft", "engine"])
def test_it_ends_nearer_to_a_retraining_than_the_closed_form(
    folder, popular, tiny_config, tmp_path, through
):
    run = load_run(folder)
    if through == "peft":
        run = train_run(merge(tiny_config, {**SHORT, "train.through": "peft"}), tmp_path / "run")
    mask = popular(run)
    (done,) = retrain(run, [removal("popular", mask)])
    truth, found = (done.theta - run.theta).double(), {}
    for name, options in {"closed form": {"update": "closed_form"}, "unrolled": {}}.items():
        job = prepare(run, with_options(run.config.debias, options), StageClock())
        run.engine.load(run.theta)
        shift = solvers(job, gather(job)).remove(mask).delta.double()
        cosine = float(torch.cosine_similarity(shift, truth, dim=0))
        found[name] = (cosine, float(shift @ truth / shift.square().sum()))
    assert found["unrolled"][0] > found["closed form"][0] + 0.1
    assert 0.6 < found["unrolled"][1] < 1.2


def test_nobody_removed_is_the_adapter(folder):
    run = load_run(folder)
    _, unrolled = unrolled_run(run)
    way = float((run.theta - run.start).norm())
    off = float((unrolled.update(torch.zeros(unrolled.n)) - run.theta).norm())
    assert off < 1e-4 * way


def test_a_request_is_unrolled_where_the_store_has_the_training(folder, monkeypatch):
    """Scores and update come from the store alone: no sample goes through the model again."""
    run = load_run(folder)
    monkeypatch.setattr(run.engine, "sample_grads", None)
    found = fudlr.debias(run, objective="arp", curve=(0.05,), force=True)
    assert found.summary["solver"]["rows"] == "unrolled"
    about = found.summary["update"]
    assert about["rule"] == "unrolled"
    assert about["why"] == "unrolled, since the store has the whole training"
    assert found.after.metrics["arp_soft"] < found.before.metrics["arp_soft"]
    predicted = found.answer.scored.predicted(found.mask)["arp"]
    assert predicted < 0
    (tangent,) = unrolled_run(run)[1].tangent(found.mask[None])
    run.engine.load(run.theta)
    job = prepare(run, found.config, StageClock())
    gradient = job.gradients(job.valid)["arp"].gradient
    assert float(tangent @ gradient) == pytest.approx(predicted, rel=1e-3)
    assert [point["budget"] for point in found.curve] == [0.05]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"curvature": "ggn"}, "debias.curvature"),
        ({"rows": "memory"}, "debias.rows"),
        ({"damping": 0.1}, "debias.damping"),
        ({"candidates": 0.5}, "debias.candidates"),
    ],
)
def test_what_does_not_go_with_it_is_refused_or_answered_by_the_closed_form(folder, options, why):
    run = load_run(folder)
    asked = with_options(run.config.debias, {"update": "unrolled", **options})
    with pytest.raises(UsageError, match=why):
        prepare(run, asked, StageClock())
    job = prepare(run, with_options(run.config.debias, options), StageClock())
    assert job.update == "closed_form"
    assert why in job.why


def test_a_store_without_the_training_is_said(folder, tiny_config, tmp_path):
    options = {**SHORT, "record.epochs": "last", "model.pretrain_epochs": 0, "train.epochs": 1}
    run = train_run(merge(tiny_config, options), tmp_path / "run")
    assert run.store().n == len(run.split.train)
    job = prepare(run, run.config.debias, StageClock())
    assert "rows of the trained adapter alone" in job.why
    with pytest.raises(UsageError, match=r"record\.epochs=all"):
        prepare(run, with_options(run.config.debias, {"update": "unrolled"}), StageClock())
    with pytest.raises(DataError, match="rows of the adapter alone"):
        Unrolled.of(run.store(), run.engine.shapes)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "case", [("peft", "all", 6), ("engine", "all", 6), ("engine", "all", 4), ("peft", "last", 6)]
)
def test_a_killed_training_goes_on_with_its_recording(tiny_config, tmp_path, monkeypatch, case):
    """Byte for byte; killed after a checkpoint in the middle of the second epoch or before it."""
    through, epochs, at = case
    options = {
        **SHORT, "train.through": through, "train.batch": 400, "train.checkpoint": 1,
        "model.pretrain_epochs": 0, "record.epochs": epochs, "record.fit_samples": 64,
        "record.energy": 0.99,
    }  # fmt: skip
    config = merge(tiny_config, options)
    train_run(config, tmp_path / "whole")
    write, calls = Checkpoint.write, []

    def killed(self, key, state):
        write(self, key, state)
        calls.append(state.step)
        if state.step == at:
            raise Killed

    monkeypatch.setattr(Checkpoint, "write", killed)
    with pytest.raises(Killed):
        train_run(config, tmp_path / "run")
    monkeypatch.undo()
    resumed = train_run(config, tmp_path / "run")
    assert calls == list(range(1, at + 1))
    names = sorted(path.name for path in (tmp_path / "whole" / "store").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "run" / "store").iterdir())
    assert ("projection-001.safetensors" in names) == (epochs == "all")
    for name in names:
        left, right = (tmp_path / each / "store" / name for each in ("whole", "run"))
        assert left.read_bytes() == right.read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]
    assert torch.equal(resumed.theta, load_run(tmp_path / "whole").theta)


def test_without_its_recording_a_killed_training_begins_anew(tiny_config, tmp_path, monkeypatch):
    options = {**SHORT, "train.batch": 400, "train.checkpoint": 2, "model.pretrain_epochs": 0}
    config, clear = merge(tiny_config, options), Checkpoint.clear

    def killed(self, key):
        raise Killed

    monkeypatch.setattr(Checkpoint, "clear", killed)
    with pytest.raises(Killed):
        train_run(config, tmp_path / "run")
    monkeypatch.setattr(Checkpoint, "clear", clear)
    shutil.rmtree(tmp_path / ".run.store")
    run = train_run(config, tmp_path / "run")
    assert run.store().steps == 8
    assert unrolled_run(run)[1].n == len(run.split.train)
