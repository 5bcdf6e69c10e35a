"""The training gone again: kept, resumed, against real retraining, and what is refused."""

from types import SimpleNamespace

import fudlr
import pytest
import torch
from fudlr import load_run, train_run
from fudlr.common.errors import DataError, UsageError
from fudlr.config import merge
from fudlr.influence.unroll import FOLDER, Steps, StepWriter
from fudlr.pipeline.evidence import gather, solvers
from fudlr.pipeline.plan import prepare, with_options
from fudlr.pipeline.unrolled import replay_of
from fudlr.train.adapter import train_adapter
from fudlr.train.checkpoint import ENDING, Checkpoint
from fudlr.verify import removal, retrain

SHORT = {"train.epochs": 2, "train.batch": 32, "train.through": "engine", "debias.damping": None}
KEPT = {**SHORT, "record.trajectory": "float32"}


@pytest.fixture(scope="module")
def folder(once, tiny_config):
    return once("replay", lambda folder: train_run(merge(tiny_config, KEPT), folder))


def test_training_keeps_its_batches_and_is_the_same(folder, tiny_config, tmp_path):
    run = load_run(folder)
    plain = train_run(merge(tiny_config, {**SHORT, "record.ride": False}), tmp_path / "plain")
    assert torch.equal(run.theta, plain.theta)
    assert not (tmp_path / "plain" / FOLDER).exists()
    n, batch = len(run.split.train), run.config.train.batch
    steps = Steps(folder / FOLDER, 2 * -(-n // batch))
    seen = torch.cat([step.samples for step in steps])
    assert torch.equal(seen.sort().values, torch.arange(n).repeat_interleave(2))
    first = steps.read(1)
    run.engine.load(run.start)
    data = run.recommender.collate(run.split.train.take(first.samples.numpy()))
    rows = run.engine.sample_grads(run.recommender.forward, run.recommender.loss, data)
    assert torch.allclose(first.rows, rows, rtol=1e-4, atol=1e-7)
    assert torch.allclose(first.slope, rows.mean(0), rtol=1e-4, atol=1e-7)


def test_it_ends_nearer_to_a_retraining_than_any_closed_form(folder, popular):
    run = load_run(folder)
    mask = popular(run)
    (done,) = retrain(run, [removal("popular", mask)])
    truth = (done.theta - run.theta).double()
    found = {}
    for name, options in {
        "closed form": {"rows": "memory"},
        "unrolled": {"update": "unrolled"},
    }.items():
        job = prepare(run, with_options(run.config.debias, options))
        run.engine.load(run.theta)
        shift = solvers(job, gather(job)).remove(mask).delta.double()
        cosine = float(torch.cosine_similarity(shift, truth, dim=0))
        found[name] = (cosine, float(shift @ truth / shift.square().sum()))
    assert found["unrolled"][0] > found["closed form"][0] + 0.1
    assert 0.6 < found["unrolled"][1] < 1.2


def test_nobody_removed_is_the_adapter(folder):
    run = load_run(folder)
    replay = replay_of(run)
    way = float((run.theta - run.start).norm())
    off = float((replay.update(torch.zeros(replay.n)) - run.theta).norm())
    assert off < 1e-4 * way


def test_a_request_from_the_trajectory(folder, monkeypatch):
    """Scores and update come from the batches alone: no sample goes through the model again."""
    run = load_run(folder)
    monkeypatch.setattr(run.engine, "sample_grads", None)
    options = {"curve": (0.05,), "force": True}  # the trajectory is there: auto is unrolled
    found = fudlr.debias(run, objective="arp", **options)
    assert found.summary["solver"]["rows"] == "unrolled"
    assert found.after.metrics["arp_soft"] < found.before.metrics["arp_soft"]
    assert found.summary["update"]["rule"] == "unrolled"
    assert not [each for each in found.summary["diagnostics"] if each["name"] == "training"]
    predicted = found.answer.scored.predicted(found.mask)["arp"]
    assert predicted < 0
    (tangent,) = replay_of(run).tangent(found.mask[None])
    run.engine.load(run.theta)
    job = prepare(run, found.config)
    gradient = job.gradients(job.valid)["arp"].gradient
    assert float(tangent @ gradient) == pytest.approx(predicted, rel=1e-3)
    assert [point["budget"] for point in found.curve] == [0.05]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"curvature": "ekfac"}, "curvature"),
        ({"damping": 0.1}, "damping"),
        ({"newton_steps": 1}, "newton_steps"),
        ({"rows": "store"}, "rows=store"),
        ({"candidates": 0.5}, "candidates"),
    ],
)
def test_what_does_not_go_with_it_is_refused_or_turns_to_the_closed_form(folder, options, why):
    run = load_run(folder)
    with pytest.raises(UsageError, match=why):
        prepare(run, with_options(run.config.debias, {"update": "unrolled", **options}))
    assert prepare(run, with_options(run.config.debias, options)).update == "closed_form"


def test_a_run_without_batches_is_refused_before_any_work(run_folder):
    run = load_run(run_folder)
    with pytest.raises(UsageError, match=r"record\.trajectory"):
        prepare(run, with_options(run.config.debias, {"update": "unrolled"}))


def test_another_adapter_is_refused(folder):
    run = load_run(folder, folder / "start")
    with pytest.raises(DataError, match="whole way"):
        replay_of(run)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"train.through": "peft"}, "through=engine"),
        ({"record.ride": True}, "rides itself"),
    ],
)
def test_a_training_that_cannot_keep_them_is_refused(tiny_config, tmp_path, options, why):
    with pytest.raises(UsageError, match=why):
        train_run(merge(tiny_config, {**KEPT, **options}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Killed(BaseException):
    pass


def resumable(run, path, *, stop_at=None):
    """Two epochs of four batches with a checkpoint every second; with the batches computed."""
    batch = -(-len(run.split.train) // 4)
    config = run.config.train.model_copy(update={"epochs": 2, "batch": batch})
    writer, steps = StepWriter(path / FOLDER), 0
    write = writer.write

    def counted(*given):
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise Killed
        write(*given)

    writer.write = counted
    found = train_adapter(
        run.recommender, run.engine, run.split.train, config, run.start,
        checkpoint=Checkpoint(path, 2, "this run"), trajectory=writer,
    )  # fmt: skip
    return found, steps


def test_a_killed_training_goes_on_with_its_batches(folder, tmp_path):
    run = load_run(folder)
    whole, _ = resumable(run, tmp_path / "whole")
    with pytest.raises(Killed):
        resumable(run, tmp_path / "killed", stop_at=6)
    resumed, steps = resumable(run, tmp_path / "killed")
    assert steps == 4
    assert torch.equal(resumed.theta, whole.theta)
    pair = (Steps(tmp_path / name / FOLDER, 8) for name in ("whole", "killed"))
    for one, other in zip(*pair, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.slope, other.slope)


def test_without_its_batches_it_begins_anew(folder, tmp_path):
    run = load_run(folder)
    with pytest.raises(Killed):
        resumable(run, tmp_path, stop_at=6)
    assert list(tmp_path.glob(f"*{ENDING}"))
    (tmp_path / FOLDER / "step-00002.safetensors").unlink()
    assert resumable(run, tmp_path)[1] == 8


def test_another_trainings_batches_do_not_stay(folder, tmp_path):
    """A killed training of more steps, or in another type, leaves nothing in the next one's."""
    run = load_run(folder)
    stray = tmp_path / FOLDER / "step-00099.safetensors"
    StepWriter(stray.parent).write(99, torch.zeros(1), torch.zeros(1, 2), torch.zeros(2))
    resumable(run, tmp_path)
    assert not stray.exists()
    assert len(list(stray.parent.iterdir())) == 8
    assert StepWriter(stray.parent).resume(0, "any")
    assert not list(stray.parent.iterdir())


def test_a_disk_without_room_is_refused_before_training(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fudlr.gradients.steps.shutil.disk_usage", lambda _: SimpleNamespace(free=9)
    )
    with pytest.raises(UsageError, match="GB are free"):
        train_run(merge(tiny_config, {**KEPT, "model.pretrain_epochs": 0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_train_run_puts_them_into_the_run(tiny_config, tmp_path):
    options = {**KEPT, "model.pretrain_epochs": 0, "train.epochs": 1, "train.checkpoint": 2}
    run = train_run(merge(tiny_config, options), tmp_path / "run")
    assert replay_of(run).n == len(run.split.train)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
