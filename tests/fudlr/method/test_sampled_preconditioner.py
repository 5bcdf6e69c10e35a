"""The sampled preconditioner: its formula, and what it saves."""

import pytest
import torch
from fudlr.common.errors import DataError
from fudlr.influence.solvers import sampled_preconditioner, solve_cg
from fudlr.influence.solvers.sampled import EXCESS


def rows(n, p):
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(1, -2, p, dtype=torch.float64)
    return torch.randn(n, p, generator=generator, dtype=torch.float64) * spread


def test_it_is_the_inverse_of_the_sample():
    sample = rows(30, 50)
    vectors = torch.randn(3, 50, dtype=torch.float64)
    matrix = sample.T @ sample / 30 + EXCESS * 0.05 * torch.eye(50, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, vectors.T).T
    assert torch.allclose(sampled_preconditioner(sample, 0.05)(vectors), expected, rtol=1e-9)


def test_it_saves_most_steps():
    g = rows(1000, 80)
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


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="m ≥ 1"):
        sampled_preconditioner(torch.empty(0, 4), 0.1)
