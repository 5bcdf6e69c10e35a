"""One more of each: a reader, a recommender, a metric, a curvature and a solver, a line each.

Each is added to its folder's table as CONTRIBUTING.md says, then one run is trained and debiased
with all of them by name.
"""

import json

import fudlr
import polars as pl
import pytest
import torch
from fudlr.config import RunConfig, merge
from fudlr.data import READERS, synthetic
from fudlr.data.readers import Reader
from fudlr.influence.curvature import CURVATURES, EmpiricalFisher
from fudlr.influence.solvers import SOLVERS, Solution, solve_cg
from fudlr.metrics import METRICS, catalogue_softmax, from_function
from fudlr.recommenders import RECOMMENDERS, ItemTokens

SMALL = {
    "data.k": 5, "data.window": 6, "data.user_group": "gender",
    "model.hidden": 16, "model.heads": 2, "model.kv_heads": 1, "model.layers": 1,
    "model.intermediate": 16, "model.pretrain_epochs": 4, "model.pretrain_learning_rate": 0.02,
    "lora.rank": 2, "train.epochs": 4, "record.epochs": "none",
}  # fmt: skip


def top_three(scores, side):
    """Expected share of recommendations that go to the three most popular items."""
    three = side.popularity.topk(3).indices
    return catalogue_softmax(scores, side.seen)[:, three].sum(1).mean()


class Doubled(EmpiricalFisher):
    """2 GᵀG / n, which with twice the damping halves every influence."""

    name = "doubled"
    couples_layers = True

    def product(self, vectors):
        return 2 * super().product(vectors)


class Reversed(ItemTokens):
    """Recommends as item tokens do; a kind of its own all the same."""

    name = "reversed"


@pytest.fixture
def added(monkeypatch):
    solved = []

    def solver(curvature, damping, **options):
        def solve(rhs) -> Solution:
            solved.append(tuple(rhs.shape))
            return solve_cg(curvature.product, rhs, damping, **options)

        return solve

    reader = Reader("a form of one's own", lambda path, *_: path.suffix == ".trips",
                    lambda path, *_: synthetic(**json.loads(path.read_text())))  # fmt: skip
    monkeypatch.setitem(READERS, "trips", reader)
    monkeypatch.setitem(RECOMMENDERS, Reversed.name, Reversed)
    metric = from_function("top_three", top_three, lower_is_better=True)
    monkeypatch.setitem(METRICS, metric.name, metric)
    monkeypatch.setitem(CURVATURES, Doubled.name, Doubled)
    monkeypatch.setitem(SOLVERS, "counted", solver)
    return solved


def test_one_of_each_is_added_with_one_line(added, tmp_path, monkeypatch):
    monkeypatch.setenv("FUDLR_QUIET", "1")
    data = tmp_path / "bookings.trips"
    data.write_text(json.dumps({"n_users": 90, "n_items": 120, "seed": 0}))
    own = {"data.source": str(data), "recommender.kind": "reversed"}
    run = fudlr.train_run(merge(RunConfig(), {**SMALL, **own}), tmp_path / "run")
    assert type(fudlr.load_run(tmp_path / "run").recommender) is Reversed

    def asked(curvature, solver, damping):
        result = fudlr.debias(
            run, objective="top_three", rows="memory", curvature=curvature, solver=solver,
            damping=damping, lambda_acc=0.0, curve=(), heldout=False, force=True,
        )  # fmt: skip
        fudlr.write_result(tmp_path / curvature, result)
        table = pl.read_parquet(tmp_path / curvature / "mask.parquet")
        return result, torch.from_numpy(table["influence_top_three"].to_numpy().copy())

    plain, influence = asked("empirical_fisher", "cg", 0.1)
    ours, halved = asked("doubled", "counted", 0.2)
    assert added, "the solver was not called"
    torch.testing.assert_close(2 * halved, influence, rtol=1e-3, atol=1e-3 * influence.abs().max())
    assert (ours.mask != plain.mask).double().mean() < 0.02, "near-equal scores may swap"
    assert ours.summary["before"]["top_three"] > 0
