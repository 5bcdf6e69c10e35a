"""Requests from a store: exact where nothing is projected away, refused where it is not theirs."""

import fudlr
import pytest
import torch
from fudlr import load_run
from fudlr.common.errors import UsageError
from fudlr.gradients import Projection, record_rows
from fudlr.gradients.store import Binding, Store, StoreError, StoreWriter, digest
from fudlr.pipeline import evidence
from fudlr.pipeline.plan import prepare, with_options

SHORT = {"curve": (), "heldout": False}


def binding(run, theta):
    same = digest("same")
    return Binding(same, digest(theta), same, digest(torch.from_numpy(run.split.train.ids)))


def rows_of(run) -> torch.Tensor:
    recommender = run.recommender
    face = (run.engine, recommender.forward, recommender.loss)
    run.engine.load(run.theta)
    return record_rows(*face, list(recommender.batches(run.split.train, 256))).matrix


@pytest.fixture(scope="module")
def gradients(run_folder):
    return rows_of(load_run(run_folder))


def with_store(folder, run, gradients, matrices=("lora_A", "lora_B"), theta=None):
    """The run with a store in float32 that belongs to `theta`, its own by default.

    It has the LoRA matrices of these names as they are, and nothing of others.
    """
    factors = {
        name: torch.eye(max(shape))
        for name, shape in run.engine.shapes.items()
        if any(each in name for each in matrices)
    }
    projection = Projection(run.engine.shapes, factors)
    made_from = binding(run, run.theta if theta is None else theta)
    order = torch.randperm(len(gradients), generator=torch.Generator().manual_seed(0))
    with StoreWriter(folder, "course", 0, "float32", shard_bytes=100) as writer:
        writer.use(projection)
        for part in order.split(100):
            ids = torch.from_numpy(run.split.train.ids)[part]
            writer.append(ids, projection.project(gradients[part]))
        writer.finish(made_from)
    run.store = lambda: Store.open(folder, binding(run, run.theta))
    return run


def test_a_store_that_kept_everything_answers_as_the_full_method(
    tmp_path, run_folder, gradients, monkeypatch
):
    monkeypatch.setattr(evidence, "SKETCH_TOLERANCE", 1e-5)
    monkeypatch.setattr(evidence, "MAX_STEPS", 300)
    options = {"objective": "arp + 0.5*hellinger", **SHORT}
    exact = fudlr.debias(load_run(run_folder), rows="memory", **options)
    run = with_store(tmp_path / "store", load_run(run_folder), gradients)
    found = fudlr.debias(run, rows="store", **options)
    assert found.summary["solver"]["rows"] == "store"
    mine, other = found.answer.scored.influence.values, exact.answer.scored.influence.values
    assert (mine - other).norm() < 2e-3 * other.norm()
    assert int((found.mask != exact.mask).sum()) <= 2
    shift, true = found.answer.update.delta, exact.answer.update.delta
    assert (shift - true).norm() < 0.02 * true.norm()
    job = prepare(run, with_options(run.config.debias, {"rows": "store"}))
    mean = gradients.mean(0)
    # The damping is chosen by it where the store has no mean gradient.
    assert (evidence.gather(job).mean_gradient() - mean).norm() < 1e-4 * mean.norm()


def test_what_is_projected_away_is_not_moved(tmp_path, run_folder, gradients):
    run = with_store(tmp_path / "store", load_run(run_folder), gradients, matrices=("lora_B",))
    found = fudlr.debias(run, **SHORT)
    assert found.summary["solver"]["rows"] == "store"
    for name, part in run.engine.unflatten(found.answer.update.delta).items():
        assert bool(part.any()) == ("lora_B" in name), name
    assert found.after.metrics["arp"] < found.before.metrics["arp"]


def test_another_adapters_store_is_refused_or_passed_over_and_none_is_said(
    tmp_path, run_folder, gradients
):
    run = load_run(run_folder)
    run = with_store(tmp_path / "store", run, gradients, theta=run.theta + 1)
    with pytest.raises(StoreError, match="adapter"):
        fudlr.debias(run, rows="store", **SHORT)
    found = fudlr.debias(run, **SHORT)
    assert found.summary["solver"]["rows"] == "memory"
    assert any("adapter" in said for said in found.summary["warnings"])
    run.store = lambda: None
    with pytest.raises(UsageError, match="fudlr record"):
        fudlr.debias(run, rows="store", **SHORT)


def test_an_update_by_candidates_is_divided_by_all_samples(run_folder, gradients, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_STEPS", 300)
    run = load_run(run_folder)
    found = fudlr.debias(run, candidates=0.3, rows="memory", **SHORT)
    scored = ~found.answer.scored.influence.values[:, 0].isnan()
    assert 0.25 < float(scored.double().mean()) < 0.35
    assert scored[found.mask.bool()].all()
    g, delta = gradients.double(), found.answer.update.delta.double()
    own, damping = g[scored], found.summary["solver"]["damping"]
    left = own.T @ (own @ delta) / len(own) + damping * delta
    right = found.mask.double() @ g / len(g)
    assert (left - right).norm() < 0.01 * right.norm()


@pytest.mark.parametrize("rows", ["memory", "stream", "store"])
def test_the_curvature_of_means_counts_their_terms(
    tmp_path, run_folder, gradients, rows, monkeypatch
):
    """(Gᵀ diag(T) G / n + damping) x = b, whatever the rows come from.

    So it is for losses that are means of T terms, as a title's tokens; the engine's rows are the
    same, and the run's losses of one item are told to be such means.
    """
    monkeypatch.setattr(evidence, "SKETCH_TOLERANCE", 1e-6)
    monkeypatch.setattr(evidence, "MAX_STEPS", 300)
    run = load_run(run_folder)
    if rows == "store":
        run = with_store(tmp_path / "store", run, gradients)
    monkeypatch.setattr(run.recommender, "terms", lambda samples: 1.0 + of(samples))
    options = {"rows": rows, "damping": 0.3}
    job = prepare(run, with_options(run.config.debias, options))
    found = evidence.solvers(job, evidence.gather(job))
    right = gradients[:2]
    x = found.solve(right).x
    terms = 1.0 + of(run.split.train)
    back = (x @ gradients.T * terms) @ gradients / len(gradients) + found.damping * x
    assert float((back - right).norm() / right.norm()) < 1e-3
    plain = x @ gradients.T @ gradients / len(gradients) + found.damping * x
    assert float((plain - right).norm() / right.norm()) > 0.1


def test_a_curvature_without_layers_is_rescaled_and_counts_terms(
    run_folder, gradients, monkeypatch
):
    run = load_run(run_folder)
    monkeypatch.setattr(run.recommender, "terms", lambda samples: 1.0 + of(samples))
    terms = 1.0 + of(run.split.train)
    options = {**SHORT, "objective": "arp", "lambda_acc": 0.0, "force": True}
    cut = fudlr.debias(run, curvature="ekfac", rows="memory", **options)
    damping, factor = (
        cut.summary[a][b] for a, b in (("solver", "damping"), ("update", "rescaled"))
    )
    assert 0 < factor < 1
    assert any("entries between layers" in said for said in cut.summary["warnings"])
    shift, mask = cut.answer.update.delta, cut.mask.float()
    right = mask @ gradients / len(mask)
    # Along the shift the quadratic model with all entries is at its lowest: another α is 1.
    bend = ((gradients @ shift).square() * terms).mean() + damping * shift.square().sum()
    assert float(right @ shift) == pytest.approx(float(bend), rel=1e-3)


def of(samples) -> torch.Tensor:
    return torch.from_numpy(samples.ids % 7).float()
