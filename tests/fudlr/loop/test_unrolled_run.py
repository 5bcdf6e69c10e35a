"""A run's training recorded and unrolled: against real retraining, resumed, chosen and refused."""

import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace

import fudlr
import pytest
import torch
from fudlr import load_run, train_run
from fudlr.common.errors import DataError, UsageError
from fudlr.common.progress import StageClock
from fudlr.compare import RIVALS
from fudlr.compare.base import Setting
from fudlr.config import merge
from fudlr.debias.expected import SHARES
from fudlr.debias.heldout import half_gradients
from fudlr.diagnostics import PARTS
from fudlr.gradients.store.shards import decode
from fudlr.influence.unroll import Unrolled
from fudlr.pipeline.evidence import gather, solvers
from fudlr.pipeline.plan import prepare, with_options
from fudlr.pipeline.request import solve
from fudlr.pipeline.unrolling import PROBED, Retraining, unrolled_run
from fudlr.train.checkpoint import ENDING, Checkpoint
from fudlr.verify import removal, retrain

SHORT = {
    "train.epochs": 2, "train.batch": 32, "train.learning_rate": 0.005, "train.through": "engine",
    "debias.damping": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(once, tiny_config):
    return once("unrolled", lambda folder: train_run(merge(tiny_config, SHORT), folder))


def test_steps_are_the_trainings(folder):
    run = load_run(folder)
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
    projection = store.projection(first.segment)
    sketched = projection.project(rows)
    half = first.scales.repeat_interleave(128, dim=1)[:, : projection.dim] / 2  # of a step of int8
    off = (decode(first.rows, first.scales) - sketched).abs()
    assert bool((off <= 1.01 * half + 1e-6).all())


def test_it_ends_nearer_to_a_retraining_than_the_closed_form(folder, popular):
    run = load_run(folder)
    mask = popular(run)
    (done,) = retrain(run, [removal("popular", mask)])
    truth, found = (done.theta - run.theta).double(), {}
    for name, options in {"closed form": {"update": "closed_form"}, "unrolled": {}}.items():
        job = prepare(run, with_options(run.config.debias, options), StageClock())
        run.engine.load(run.theta)
        shift = solvers(job, gather(job)).remove(mask[None])[0].delta.double()
        cosine = float(torch.cosine_similarity(shift, truth, dim=0))
        found[name] = (cosine, float(shift @ truth / shift.square().sum()))
    assert found["unrolled"][0] > found["closed form"][0] + 0.1
    assert 0.6 < found["unrolled"][1] < 1.2


def test_fishers_products_are_scaled_to_the_models_curvature(folder, popular, monkeypatch):
    """Along the shift that they lead to by themselves: uᵀ GGN u over uᵀ F u, from logits here."""
    run = load_run(folder)
    mask, (_, unrolled) = popular(run), unrolled_run(run)
    shift = unrolled.update(mask[None]) - run.theta
    (u,), (fisher,) = unrolled.curvature(shift)
    samples, recommender = run.split.train, run.recommender
    index = torch.linspace(0, len(samples) - 1, min(PROBED, len(samples))).long()
    batch = recommender.collate(samples.take(index.numpy()))

    def logits(theta):
        run.engine.load(theta)
        with torch.no_grad():
            return recommender.forward(recommender.model, batch).double()

    size = 1e-2 / float(u.norm())
    along = (logits(run.theta + size * u) - logits(run.theta - size * u)) / (2 * size)
    p = logits(run.theta).softmax(-1)
    variance = (p * along.square()).sum(-1) - (p * along).sum(-1).square()
    expected = float(variance.mean()) / float(fisher)
    run.engine.load(run.theta)
    retraining = Retraining(run, unrolled)
    found, ratio, said = retraining.without(torch.stack([torch.zeros_like(mask), mask]))
    assert ratio == pytest.approx(expected, rel=0.01)
    exact = unrolled.update(mask, ratio) - run.theta
    assert torch.allclose(found[1], exact, rtol=1e-4, atol=1e-6 * float(exact.abs().max()))
    assert not said
    # One mask is on the line through two others', where c is near enough.
    for far, most in ((0, 1e-6), (100, 0.02)):
        monkeypatch.setattr("fudlr.pipeline.unrolling.FAR", far)
        (line,), alone, _ = Retraining(run, unrolled).without(mask[None])
        assert alone == ratio
        assert float((line - exact).norm()) < most * float(exact.norm())
    # Another mask of about as many samples takes the same; one of other sizes does not.
    few = torch.zeros_like(mask)
    few[mask.nonzero()[::2]] = 1
    assert retraining.without(few[None])[1] == ratio
    assert retraining.without(torch.ones_like(mask)[None])[1] != ratio
    assert Retraining(run, unrolled, known={int(mask.sum()): 1.5}).without(mask[None])[1] == 1.5

    def refuse(*_):
        raise NotImplementedError("no second derivative")

    monkeypatch.setattr(run.engine, "ggn_form", refuse)
    plain, ratio, said = Retraining(run, unrolled).without(mask[None])
    assert ratio == 1
    assert "no second derivative" in said[0]
    assert torch.equal(plain, shift)
    # Removed samples without gradients leave nothing to measure along, and nothing to warn of.
    nothing = (torch.zeros_like(shift), torch.zeros(1))
    monkeypatch.setattr(unrolled, "curvature", lambda _: nothing)
    still = Retraining(run, unrolled)
    assert still.without(mask[None])[1:] == (1.0, [])
    assert still.bend(shift[0], 1.0, shift[0], 1.0) is None


def test_a_quadratic_loss_bends_as_the_update_has_it(folder, popular):
    """L(δ) = gᵀδ + c (uᵀFu) / 2 has a bend of 1, and three times the curvature one of 3."""
    run = load_run(folder)
    _, unrolled = unrolled_run(run)
    retraining = Retraining(run, unrolled)
    (shift,), ratio, _ = retraining.without(popular(run)[None])
    gradient = torch.randn(len(shift), generator=torch.Generator().manual_seed(0))
    (taken,) = ratio * unrolled.curvature(shift[None])[1]
    for times in (1, 3):
        rise = float(gradient @ shift + times * taken / 2)
        assert retraining.bend(shift, ratio, gradient, rise) == pytest.approx(times, rel=1e-3)


def test_nobody_removed_is_the_adapter(folder):
    run = load_run(folder)
    _, unrolled = unrolled_run(run)
    way = float((run.theta - run.start).norm())
    off = float((unrolled.update(torch.zeros(unrolled.n)) - run.theta).norm())
    assert off < 1e-4 * way


def test_rivals_of_an_unrolled_update(folder, monkeypatch):
    """The table says which update is ours. LLMEraser's solve has the loss's λ where ours has no
    damping: with a curvature of 0 it ends at b / λ after one step."""
    run = load_run(folder)
    setting = Setting(run, with_options(run.config.debias, {"force": True}))
    ours = RIVALS["removal (ours)"].points(setting)
    assert all(point.strength.endswith("removed, unrolled") for point in ours)
    monkeypatch.setattr(run.engine, "hvp", lambda *given: torch.zeros_like(given[3]))
    run.engine.load(run.theta)
    gone = setting.ours()[0].mask.nonzero().flatten().numpy()
    batch = run.recommender.collate(run.split.train.take(gone))
    face = (run.recommender.forward, run.recommender.loss)
    right = run.engine.sample_grads(*face, batch).sum(0) / len(run.split.train)
    for point in RIVALS["LLMEraser's solve"].points(setting):
        torch.testing.assert_close(
            point.theta - run.theta, right / run.config.train.l2, rtol=1e-3, atol=1e-5
        )


def test_a_loss_that_bends_otherwise_is_warned_of(folder, monkeypatch):
    """And no interval for retraining is given."""
    monkeypatch.setattr("fudlr.diagnostics.update.BENT", 0.0)
    monkeypatch.setattr(sys.modules["fudlr.debias.expected"], "BENT", 0.0)
    summary = fudlr.debias(load_run(folder), objective="arp", curve=(), force=True).summary
    found = next(each for each in summary["diagnostics"] if each["name"] == "bend")
    assert found["severity"] == "warn"
    assert found["measured"] > 0
    assert summary["expected"] == {}


def test_a_request_is_unrolled_where_the_store_has_the_training(folder, monkeypatch):
    """Scores and update come from the store alone: no sample goes through the model again."""
    run = load_run(folder)
    monkeypatch.setattr(run.engine, "sample_grads", None)
    monkeypatch.setattr(sys.modules["fudlr.debias.expected"], "BENT", float("inf"))
    found = fudlr.debias(run, objective="arp", curve=(0.05,), force=True)
    assert found.summary["solver"]["rows"] == "unrolled"
    about = found.summary["update"]
    assert about["rule"] == "unrolled"
    assert about["why"] == "unrolled, since the store has the whole training"
    assert 0.5 < about["stiffness"] < 2
    assert found.after.metrics["arp_soft"] < found.before.metrics["arp_soft"]
    change = found.after.metrics["arp_soft"] - found.before.metrics["arp_soft"]
    low, high = (share * change for share in reversed(SHARES["unrolled"]))
    assert found.summary["expected"] == {"arp_soft": pytest.approx([low, high])}
    predicted = found.answer.scored.predicted(found.mask)["arp"]
    assert predicted < 0
    (tangent,) = unrolled_run(run)[1].tangent(found.mask[None])
    run.engine.load(run.theta)
    job = prepare(run, found.config, StageClock())
    gradient = job.gradients(job.valid)["arp"].gradient
    assert float(tangent @ gradient) == pytest.approx(predicted, rel=1e-3)
    assert [point["budget"] for point in found.curve] == [0.05]


def test_what_does_not_go_with_it_is_refused_or_answered_by_the_closed_form(folder):
    run = load_run(folder)
    given = {"curvature": "ggn", "rows": "memory", "damping": 0.1, "candidates": 0.5}
    for name, value in given.items():
        asked = with_options(run.config.debias, {"update": "unrolled", name: value})
        with pytest.raises(UsageError, match=f"debias.{name}"):
            prepare(run, asked, StageClock())
        job = prepare(run, with_options(run.config.debias, {name: value}), StageClock())
        assert job.update == "closed_form"
        assert f"debias.{name}" in job.why


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


def checkpoints(config, folder, last=None):
    """Steps at which the training keeps its state; it is killed after that of the `last`."""
    write, steps = Checkpoint.write, []

    def noted(self, key, state):
        write(self, key, state)
        steps.append(state.step)
        if state.step == last:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "write", noted)
        with pytest.raises(Killed) if last else nullcontext():
            train_run(config, folder)
    return steps


FOUR_STEPS = {**SHORT, "train.batch": 400, "train.checkpoint": 1, "model.pretrain_epochs": 0}


@pytest.mark.parametrize("case", [("peft", "all", 6), ("engine", "all", 4), ("peft", "last", 6)])
def test_a_killed_training_goes_on_with_its_recording(tiny_config, tmp_path, case):
    """Byte for byte; killed after a checkpoint in the middle of the second epoch or before it."""
    through, epochs, at = case
    options = {
        "train.through": through, "record.epochs": epochs,
        "record.energy": 0.99,
    }  # fmt: skip
    config = merge(tiny_config, {**FOUR_STEPS, **options})
    whole = train_run(config, tmp_path / "whole")
    assert checkpoints(config, tmp_path / "run", last=at) == list(range(1, at + 1))
    resumed = train_run(config, tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "whole" / "store").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "run" / "store").iterdir())
    for name in names:
        left, right = (tmp_path / each / "store" / name for each in ("whole", "run"))
        assert left.read_bytes() == right.read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]
    assert torch.equal(resumed.theta, whole.theta)
    assert resumed.losses == whole.losses


def test_a_killed_training_begins_anew_without_its_recording(tiny_config, tmp_path):
    config = merge(tiny_config, FOUR_STEPS)
    checkpoints(config, tmp_path / "run", last=6)
    shutil.rmtree(tmp_path / ".run.store")
    run = train_run(config, tmp_path / "run")
    assert run.store().steps == 8
    assert unrolled_run(run)[1].n == len(run.split.train)


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_not_taken(tiny_config, tmp_path):
    config = merge(tiny_config, {**FOUR_STEPS, "record.epochs": "none"})
    checkpoints(config, tmp_path / "run", last=3)
    other = merge(config, {"train.l2": 0.02})
    assert checkpoints(other, tmp_path / "other")[0] == 1
    (path,) = tmp_path.glob(f"*{ENDING}")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=path.name):
        train_run(config, tmp_path / "run")


def test_another_objective_takes_what_is_known(folder):
    """The validation loss's gradient and influence are those of the request before."""
    run, clock = load_run(folder), StageClock(announce=False)
    options = {"lambda_acc": 1.0, "update": "unrolled"}
    plans = [prepare(run, with_options(run.config.debias, {**options, "objective": o}), clock)
             for o in ("arp", "ndcg")]  # fmt: skip
    first, whole = (solve(plan) for plan in plans)
    gradients = plans[1].gradients(plans[1].valid, known=first.gradients)
    assert gradients["val_loss"] is first.gradients["val_loss"]
    further = first.by(gradients)
    assert set(further.influence.names) == {"ndcg", "val_loss"}
    for name in further.influence.names:
        torch.testing.assert_close(further.influence.of(name), whole.influence.of(name))
    assert further.by(gradients).influence is further.influence


def test_each_half_has_the_gradients_of_its_own_prompts(folder, monkeypatch):
    """Of means from the whole's parts, without a pass; of others anew."""
    run, clock = load_run(folder), StageClock(announce=False)
    options = {"objective": "arp + hellinger", "also": ("ndcg",), "lambda_acc": 1.0}
    plan = prepare(run, with_options(run.config.debias, options), clock)
    whole = solve(plan, lambda: plan.gradients(plan.valid, PARTS))
    halves = plan.halves(plan.valid)
    expected = [plan.gradients(plan.valid.take(own)) for own in halves]
    for half, own in enumerate(halves):
        found = half_gradients(whole, own, half)
        assert set(found) == {"arp", "hellinger", "ndcg", "val_loss"}
        for name, each in found.items():
            torch.testing.assert_close(each.gradient, expected[half][name].gradient)
            assert each.value == pytest.approx(expected[half][name].value, rel=1e-5)
    plan = replace(plan, metrics=[metric for metric in plan.metrics if metric.is_mean])
    monkeypatch.setattr(run.engine, "deferred_vjp", None)
    assert set(half_gradients(replace(whole, plan=plan), halves[0], 0)) == {
        "arp",
        "ndcg",
        "val_loss",
    }
