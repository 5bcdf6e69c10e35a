"""The damping of an early stop in Adam's metric: against real retraining, and what is refused."""

import math

import fudlr
import pytest
import torch
from fudlr import load_run, train_run
from fudlr.common.errors import DataError, UsageError
from fudlr.common.progress import StageClock
from fudlr.config import merge
from fudlr.pipeline.evidence import gather, solvers
from fudlr.pipeline.job import prepare, with_options
from fudlr.train.adam import FILE, Adam
from fudlr.verify import removal, retrain

SHORT = {"train.epochs": 2, "debias.damping": None}


@pytest.fixture(scope="module")
def short_run(once, tiny_config):
    return once("short", lambda folder: train_run(merge(tiny_config, SHORT), folder))


def evidence(run, **options):
    """From whole gradients, for either metric."""
    options = {"rows": "memory", **options}
    job = prepare(run, with_options(run.config.debias, options), StageClock())
    run.engine.load(run.theta)
    found = solvers(job, gather(job))
    run.engine.load(run.theta)
    return found


def test_a_run_keeps_what_adam_left(short_run):
    run = load_run(short_run)
    config = run.config.train
    steps = 2 * math.ceil(len(run.split.train) / config.batch)
    rates = [config.learning_rate * (1 + math.cos(math.pi * t / steps)) / 2 for t in range(steps)]
    assert run.adam.rates == pytest.approx(sum(rates))
    assert run.adam.squares.shape == run.theta.shape
    # A step is at most as long as its rate, so that no parameter went further than all rates.
    assert bool(((run.theta - run.start).abs() <= 1.01 * run.adam.rates).all())
    # The squares of a single step's gradient, were there one step: no bias is left.
    one = merge(run.config, {"train.epochs": 1, "train.batch": 10_000, "train.l2": 0.0})
    trained = fudlr.train.adapter.train_adapter(
        run.recommender, run.engine, run.split.train, one.train, run.start
    )
    run.engine.load(run.start)
    batch = next(iter(run.recommender.batches(run.split.train, 10_000)))
    recommender, n = run.recommender, len(run.split.train)
    gradient = run.engine.grad_sum(
        recommender.forward, recommender.loss, batch, torch.full((1, n), 1 / n)
    )[0]
    assert torch.allclose(trained.adam.squares.sqrt(), gradient.abs(), rtol=1e-2, atol=1e-7)


def test_a_short_training_is_met_better_than_by_one_damping(short_run, popular):
    """Adam gives every parameter the same pace, whatever its gradient; one number does not."""
    run = load_run(short_run)
    mask = popular(run)
    (done,) = retrain(run, [removal("popular", mask)])
    truth = (done.theta - run.theta).double()
    found = {}
    for metric in ("identity", "adam"):
        shift = evidence(run, metric=metric).remove(mask).delta.double()
        found[metric] = (
            float(torch.cosine_similarity(shift, truth, dim=0)),
            float(shift @ truth / shift.square().sum()),
        )
    assert found["adam"][0] > found["identity"][0] + 0.04
    assert 0.6 < found["adam"][1] < 1.5  # of the way that is retraining's
    assert found["identity"][1] < 0.6


def test_rows_are_without_what_adam_gives_back(short_run):
    """Their mean is ḡ − κ s, s = ḡ + λ(θ* − θ₀), κ = (1 + s²/v̂) / 2, and H damps by λ + √v̂/τ."""
    run = load_run(short_run)
    n, l2, squares = len(run.split.train), run.config.train.l2, run.adam.squares
    even = torch.full((1, n), 1 / n)
    mean = evidence(run, metric="identity").space.rows.sum(even)[0]
    slope = mean + l2 * (run.theta - run.start)
    kappa = (1 + (slope.square() / squares).clamp(max=1)) / 2
    found = evidence(run, metric="adam", max_steps=200)
    left = found.space.rows.sum(even)[0]
    assert float((left - (mean - kappa * slope)).norm() / mean.norm()) < 1e-4
    solution = found.solve(mean[None]).x
    back = found.space.rows.gram_product(solution)[0]
    back = back + (l2 + squares.sqrt() / run.adam.rates) * solution[0]
    assert float((back - mean).norm() / mean.norm()) < 1e-2


def test_the_request_says_by_what_it_damped(short_run):
    options = {"curve": (), "heldout": False, "force": True, "metric": "adam"}
    found = fudlr.debias(load_run(short_run), objective="arp", **options)
    solver = found.summary["solver"]
    assert (solver["metric"], solver["rows"]) == ("adam", "memory")
    assert solver["damping"] == found.run.config.train.l2
    assert solver["mean_damping"] > solver["damping"]
    assert found.after.metrics["arp"] < found.before.metrics["arp"]
    (said,) = (each for each in found.summary["signatures"] if each["name"] == "training")
    assert "debias.metric" not in said["advice"]  # it is in use


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"curvature": "kfac"}, "entries between layers"),
        ({"solver": "woodbury"}, "one damping"),
        ({"update": "newton"}, "past where training stopped"),
        ({"slope": "descend"}, "where a retraining stops"),
        ({"polish": True}, "store"),
        ({"rows": "store"}, "sketches mix"),
    ],
)
def test_what_does_not_go_with_it_is_refused(short_run, options, why):
    with pytest.raises(UsageError, match=why):
        fudlr.debias(load_run(short_run), objective="arp", metric="adam", **options)


def test_a_run_without_adams_state_is_refused_before_any_work(short_run):
    run = load_run(short_run)
    run.adam = None
    with pytest.raises(UsageError, match=rf"no {FILE}"):
        prepare(run, with_options(run.config.debias, {"metric": "adam"}), StageClock())


def test_a_damaged_state_is_named(tmp_path):
    assert Adam.load(tmp_path) is None
    Adam(torch.ones(3), 0.5).save(tmp_path)
    assert Adam.load(tmp_path).rates == 0.5
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(DataError, match="damaged"):
        Adam.load(tmp_path)
