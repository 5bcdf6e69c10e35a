"""Adam's metric on a quadratic loss, where the way of a training is known exactly."""

import pytest
import torch
from fudlr.common.errors import UsageError
from fudlr.gradients.store import CentredRows, MemoryRows
from fudlr.influence.curvature import EmpiricalFisher
from fudlr.influence.solvers import InMetric, make_solver
from fudlr.train.adam import Adam

D, N = 12, 40


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    return MemoryRows(torch.randn(N, D, generator=generator, dtype=torch.float64))


@pytest.fixture
def adam():
    generator = torch.Generator().manual_seed(1)
    return Adam(torch.rand(D, generator=generator, dtype=torch.float64) + 0.1, 3.0)


def solve(rows, damping, name="cg"):
    scaled = InMetric(EmpiricalFisher(rows), damping)
    options = {"max_steps": 200, "tolerance": 1e-12} if name == "cg" else {"max_steps": D}
    return scaled.solver(make_solver(scaled, 1.0, name, **options))


@pytest.mark.parametrize("name", ["cg", "lanczos"])
def test_solves_with_a_damping_for_each_parameter(rows, adam, name):
    damping = adam.damping(0.05)
    assert torch.allclose(damping, 0.05 + adam.squares.sqrt() / 3)
    rhs = torch.randn(3, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    matrix = rows.matrix.T @ rows.matrix / N + damping.diag()
    expected = torch.linalg.solve(matrix, rhs.T).T
    assert torch.allclose(solve(rows, damping, name)(rhs).x, expected, rtol=1e-6, atol=1e-9)


def test_stands_for_a_training_that_stops(rows, adam):
    """Within 1.3 of (1 − e^{−τPH}) H⁻¹ b along every direction, and never longer."""
    curvature = rows.matrix.T @ rows.matrix / N
    pace = adam.squares.pow(-0.25)  # P^{1/2}
    values, vectors = torch.linalg.eigh(pace[:, None] * curvature * pace)
    for value, vector in zip(values, vectors.T, strict=True):
        stopped = (1 - (-adam.rates * value).exp()) / value * pace * vector
        found = solve(rows, adam.damping(0.0))((vector / pace)[None]).x[0]
        ratio = stopped / found
        assert torch.allclose(ratio, ratio[0].expand(D), rtol=1e-4)
        assert 1 - 1e-6 <= float(ratio[0]) <= 1.3


def test_pull_is_half_where_noise_decides_and_all_where_the_slope_does():
    adam = Adam(torch.tensor([1.0, 4.0, 1e-4, 0.0]), 1.0)
    slope = torch.tensor([1e-3, -2.0, 0.1, 0.0])
    expected = torch.tensor([0.5e-3, -2.0, 0.1, 0.0])
    assert torch.allclose(adam.pull(slope), expected, rtol=1e-4)


def test_the_step_of_adam_changes_by_what_the_pull_leaves():
    """Removing a share q of the samples evenly, first order in q, by numbers."""
    generator = torch.Generator().manual_seed(3)
    slope = torch.randn(D, generator=generator, dtype=torch.float64)
    noise = torch.rand(D, generator=generator, dtype=torch.float64) + 0.1
    adam = Adam(slope.square() + noise, 1.0)

    def step(q):
        return (1 - q) * slope / ((1 - q) ** 2 * slope.square() + (1 - q) * noise).sqrt()

    q = 1e-6
    lost = (step(0.0) - step(q)) / q * adam.squares.sqrt()
    assert torch.allclose(lost, slope - adam.pull(slope), rtol=1e-4, atol=1e-9)


def test_centred_rows(rows):
    centre = torch.linspace(-1, 1, D, dtype=torch.float64)
    moved, whole = CentredRows(rows, centre), rows.matrix - centre
    vectors, weights = torch.eye(D, dtype=torch.float64)[:3], torch.rand(2, N).double()
    assert (moved.n, moved.d) == (N, D)
    assert torch.allclose(moved.dots(vectors), whole @ vectors.T)
    assert torch.allclose(moved.sum(weights), weights @ whole)
    assert torch.allclose(moved.gram_product(vectors), rows.gram_product(vectors))


def test_a_damping_of_zero_is_refused(rows):
    with pytest.raises(UsageError, match="above 0"):
        InMetric(EmpiricalFisher(rows), torch.zeros(D))
