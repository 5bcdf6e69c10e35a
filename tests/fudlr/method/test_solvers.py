"""Solvers against dense solves: several right-hand sides, preconditioners, and what goes wrong."""

import math

import pytest
import torch
from fudlr.common.errors import DataError, NumericalError, UsageError
from fudlr.gradients import MemoryRows
from fudlr.influence.curvature import EmpiricalFisher, Identity, Parts
from fudlr.influence.solvers import Status, make_solver, sampled_preconditioner, solve_cg
from fudlr.influence.solvers.cg import EXCESS


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spd(d=40, spread=1e3):
    basis = torch.linalg.qr(normal(d, d)).Q
    return (
        basis @ torch.diag(torch.logspace(0, -torch.tensor(spread).log10(), d).double()) @ basis.T
    )


class Counting:
    """A matrix that remembers how many rows each product had."""

    def __init__(self, matrix):
        self.matrix, self.rows = matrix, []

    def __call__(self, vectors):
        self.rows.append(len(vectors))
        return vectors @ self.matrix


def test_cg_and_dense_agree():
    g, rhs, damping = normal(30, 50), normal(3, 50, seed=1), 0.02
    for weights in (None, torch.linspace(0, 2, 30).double()):
        w = torch.ones(30).double() if weights is None else weights
        fisher = (g.T * w) @ g / 30
        dense = torch.linalg.solve(fisher + damping * torch.eye(50, dtype=g.dtype), rhs.T).T
        curvature = EmpiricalFisher(Parts(MemoryRows(g), weights))
        solution = make_solver(curvature, damping, "cg", max_steps=200, tolerance=1e-12)(rhs)
        assert solution.status is Status.CONVERGED
        assert torch.allclose(solution.x, dense, rtol=1e-9, atol=1e-9)
        true = (rhs - solution.x @ fisher - damping * solution.x).norm(dim=1) / rhs.norm(dim=1)
        assert torch.allclose(solution.residuals, true, atol=1e-11)
        assert solution.warnings == []


def test_together_is_one_at_a_time():
    sizes = torch.tensor([[1.0], [1e-6], [1e6], [3.0]], dtype=torch.float64)
    a, rhs = spd(), normal(4, 40, seed=1) * sizes
    together = solve_cg(Counting(a), rhs, 0.05)
    for j in range(4):
        alone = solve_cg(Counting(a), rhs[j : j + 1], 0.05)
        assert (together.x[j] - alone.x[0]).norm() <= 1e-10 * alone.x[0].norm()
        assert torch.allclose(together.residuals[j], alone.residuals[0], rtol=1e-6)


def test_converged_right_hand_sides_are_frozen():
    a = torch.diag(torch.cat([torch.ones(1), torch.linspace(1, 100, 39)]).double())
    rhs = normal(2, 40)
    rhs[0] = 0
    rhs[0, 0] = 1  # an eigenvector: one step
    product = Counting(a)
    solution = solve_cg(product, rhs, 0.1, tolerance=1e-10)
    assert product.rows[0] == 2
    assert set(product.rows[1:]) == {1}
    assert solution.status is Status.CONVERGED
    assert solution.steps == len(product.rows)


def test_preconditioner_takes_fewer_steps_to_the_same_answer():
    scale = torch.logspace(-3, 3, 40).double()
    a = scale[:, None].sqrt() * spd(spread=10) * scale.sqrt()
    rhs = normal(2, 40)
    options = {"max_steps": 3000, "tolerance": 1e-10}
    plain = solve_cg(Counting(a), rhs, 1e-6, **options)
    diagonal = a.diagonal() + 1e-6
    better = solve_cg(Counting(a), rhs, 1e-6, preconditioner=lambda r: r / diagonal, **options)
    assert better.status is Status.CONVERGED
    assert better.steps < plain.steps / 2
    exact = torch.linalg.solve(a + 1e-6 * torch.eye(40).double(), rhs.T).T
    assert torch.allclose(better.x, exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))
    with pytest.raises(NumericalError, match="positive definite"):
        solve_cg(Counting(a), rhs, 1e-6, preconditioner=lambda r: -r)


def test_negative_curvature_is_seen_and_explained():
    a = torch.diag(torch.tensor([2.0, 1.0, -0.5], dtype=torch.float64))
    rhs = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    solution = solve_cg(Counting(a), rhs, 0.1, tolerance=1e-10)
    assert solution.statuses == (Status.CONVERGED, Status.NEGATIVE_CURVATURE)
    assert solution.status is Status.NEGATIVE_CURVATURE
    assert solution.x.isfinite().all()
    assert torch.allclose(solution.x[0], torch.tensor([1 / 2.1, 1 / 1.1, 0]).double())
    assert solution.warnings == [solution.message]
    for word in ("Negative curvature", "number 1", "0.1", "ggn", "empirical_fisher"):
        assert word in solution.message
    # The remedy that the message names works.
    assert solve_cg(Counting(a), rhs, 0.6).status is Status.CONVERGED


def test_too_few_steps_are_reported():
    solution = solve_cg(Counting(spd(spread=1e6)), normal(2, 40), 1e-6, max_steps=3)
    assert solution.status is Status.MAX_STEPS
    assert solution.steps == 3
    assert float(solution.residuals.max()) > 1e-4
    assert "3 steps" in solution.message
    assert solution.warnings == []


def test_nan_in_a_product_keeps_the_last_finite_iterate():
    a, calls = spd(), []

    def product(vectors):
        calls.append(1)
        out = vectors @ a
        if len(calls) == 3:
            out[0, 0] = torch.nan
        return out

    solution = solve_cg(product, normal(2, 40), 0.01, tolerance=1e-8, max_steps=200)
    assert solution.statuses == (Status.NOT_FINITE, Status.CONVERGED)
    assert solution.x.isfinite().all()
    assert solution.x[0].norm() > 0
    assert "NaN" in solution.message


def test_zero_right_hand_side():
    rhs = torch.stack([torch.zeros(40).double(), normal(40)])
    solution = solve_cg(Counting(spd()), rhs, 0.1)
    assert torch.equal(solution.x[0], torch.zeros(40).double())
    assert solution.residuals[0] == 0
    assert solution.status is Status.CONVERGED


def test_closed_forms_are_used_and_judged():
    class Closed:
        """A diagonal whose closed form is off by `error`."""

        def __init__(self, error=0.0):
            self.values, self.error = torch.linspace(0, 3, 40).double(), error

        def product(self, vectors):
            return vectors * self.values

        def inverse(self, rhs, damping):
            return rhs / (self.values + damping) * (1 + self.error)

    rhs = normal(3, 40)
    exact = make_solver(Closed(), 0.2, "direct")(rhs)
    assert torch.allclose(exact.x, rhs / (torch.linspace(0, 3, 40).double() + 0.2))
    assert exact.status is Status.CONVERGED
    assert float(exact.residuals.max()) < 1e-14
    near = make_solver(Closed(0.3), 0.2, "direct")(rhs)
    assert torch.allclose(near.residuals, torch.full((3,), 0.3).double())
    assert "0.3" in near.message
    with pytest.raises(UsageError, match="closed form"):
        make_solver(EmpiricalFisher(Parts(MemoryRows(normal(4, 40)))), 0.2, "direct")
    with pytest.raises(NumericalError, match="not finite"):
        make_solver(Closed(math.inf), 0.2, "direct")(rhs)


def test_bad_input():
    a, rhs = Counting(spd()), normal(2, 40)
    for damping in (-0.1, math.nan, math.inf):
        with pytest.raises(UsageError, match="damping"):
            solve_cg(a, rhs, damping)
    broken = rhs.clone()
    broken[1, 3] = torch.nan
    with pytest.raises(NumericalError, match="right-hand side 1"):
        solve_cg(a, broken, 0.1)
    with pytest.raises(DataError, match="one row"):
        solve_cg(a, rhs[0], 0.1)
    with pytest.raises(DataError, match="16-bit"):
        solve_cg(a, rhs.bfloat16(), 0.1)
    with pytest.raises(UsageError, match="max_steps"):
        solve_cg(a, rhs, 0.1, max_steps=0)
    with pytest.raises(UsageError, match="cg, direct"):
        make_solver(Identity(None), 0.1, "gauss")
    assert a.rows == []


def falling(n, p):
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(1, -2, p, dtype=torch.float64)
    return torch.randn(n, p, generator=generator, dtype=torch.float64) * spread


def test_it_is_the_inverse_of_the_sample():
    sample = falling(30, 50)
    vectors = torch.randn(3, 50, dtype=torch.float64)
    matrix = sample.T @ sample / 30 + EXCESS * 0.05 * torch.eye(50, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, vectors.T).T
    assert torch.allclose(sampled_preconditioner(sample, 0.05)(vectors), expected, rtol=1e-9)


def test_it_saves_most_steps():
    g = falling(1000, 80)
    rhs = torch.randn(2, 80, dtype=torch.float64)
    steps = [
        solve_cg(
            lambda v: v @ g.T @ g / len(g),
            rhs,
            0.03,
            max_steps=500,
            tolerance=1e-6,
            preconditioner=preconditioner,
        ).steps
        for preconditioner in (None, sampled_preconditioner(g[::4], 0.03))
    ]
    assert steps[1] < steps[0] / 3
