"""A curvature and a solver of one's own: one class or function, one line in its table."""

import fudlr
import pytest
import torch
from fudlr import load_run
from fudlr.gradients.matrix import record_rows
from fudlr.influence.curvature import CURVATURES
from fudlr.influence.solvers import SOLVERS, Solution, Status


class Diagonal:
    """The empirical Fisher's diagonal."""

    semidefinite = True
    couples_layers = False
    from_rows = False

    def __init__(self, values):
        self.values = values

    @classmethod
    def make(cls, parts):
        squares = torch.zeros(parts.engine.d)
        for batch, _ in parts.batches:
            rows = parts.engine.sample_grads(parts.forward, parts.loss, batch)
            squares += rows.square().sum(0)
        return cls(squares / parts.batches.n)

    def product(self, vectors):
        return vectors * self.values


def jacobi(curvature, damping):
    """One step of Jacobi's iteration, exact for a diagonal."""

    def solve(rhs):
        one = torch.ones(1, rhs.shape[1], dtype=rhs.dtype)
        x = rhs / (curvature.product(one) + damping)
        return Solution(x, torch.zeros(len(rhs)), 1, (Status.CONVERGED,) * len(rhs), "one step")

    return solve


def test_a_curvature_and_a_solver_are_a_line_each(run_folder, monkeypatch):
    monkeypatch.setitem(CURVATURES, "diagonal", Diagonal)
    monkeypatch.setitem(SOLVERS, "jacobi", jacobi)
    run = load_run(run_folder)
    options = {"objective": "arp", "damping": 0.2, "rows": "memory", "curve": (), "heldout": False}
    found = fudlr.debias(run, curvature="diagonal", solver="jacobi", force=True, **options)
    assert found.summary["config"]["debias"]["curvature"] == "diagonal"
    assert found.summary["update"]["rescaled"] > 0  # it has no entries between layers
    run.engine.load(run.theta)
    recommender = run.recommender
    batches = list(recommender.batches(run.split.train, 256))
    g = record_rows(run.engine, recommender.forward, recommender.loss, batches).matrix.double()
    x = found.answer.scored.influence.solution.x.double()
    right = x * (g.square().mean(0) + 0.2)
    expected = g @ (right / (g.square().mean(0) + 0.2)).T / len(g)
    values = found.answer.scored.influence.values.double()
    assert torch.allclose(values, expected, rtol=1e-3, atol=1e-7)
    by_cg = fudlr.debias(
        run, curvature="diagonal", solver="cg", max_steps=300, force=True, **options
    )
    other = by_cg.answer.scored.influence.values.double()
    assert float((values - other).norm() / other.norm()) < 1e-2
    assert float((found.theta - by_cg.theta).norm()) < 0.02 * float(
        (by_cg.theta - run.theta).norm()
    )
    with pytest.raises(fudlr.FudlrError, match="diagonal"):
        fudlr.debias(run, **{**options, "curvature": "diagonals"})
