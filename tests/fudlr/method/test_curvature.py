"""Every curvature of the table on one suite: dense matrices by definition, and what it claims."""

from dataclasses import replace

import pytest
import torch
from fudlr.common.errors import DataError
from fudlr.influence.curvature import CURVATURES
from sequence_bed import N, SequenceBed

NAMES = sorted(CURVATURES)
DAMPING = 0.07


@pytest.fixture(scope="module")
def bed():
    return SequenceBed()


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def made(bed, name, weights=None):
    """The curvature, and the matrix that it should be."""
    return CURVATURES[name](bed.parts(weights)), bed.dense(name, weights)


@pytest.fixture(scope="module", params=NAMES)
def case(request, bed):
    return (request.param, *made(bed, request.param))


def test_the_product_is_the_definition_s(bed, case):
    _, curvature, dense = case
    v = normal(3, bed.engine.d)
    assert torch.allclose(curvature.product(v), v @ dense, atol=1e-10)
    assert dense.abs().max() > 1e-3
    w = normal(3, bed.engine.d, seed=1)  # linear and symmetric
    product = curvature.product
    assert torch.allclose(product(2 * v - w), 2 * product(v) - product(w), atol=1e-10)
    assert torch.allclose(product(v) @ w.T, v @ product(w).T, atol=1e-10)
    assert product(v[:0]).shape == (0, bed.engine.d)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "identity"])
def test_weights_are_the_samples_own(bed, name):
    for weights in (bed.weights, (bed.weights > 0.3).double()):
        curvature, dense = made(bed, name, weights)
        v = normal(2, bed.engine.d)
        assert torch.allclose(curvature.product(v), v @ dense, atol=1e-10)
    assert not torch.allclose(dense, made(bed, name)[1], atol=1e-3)


def test_what_the_table_claims(bed, case):
    name, curvature, dense = case
    start = bed.slices()[bed.engine.names[2]].start  # the second module
    across = dense[:start, start:].abs().max()
    assert curvature.couples_layers == bool(across > 1e-6), name


def test_closed_forms_are_their_definition_s_inverse(bed):
    closed = set()
    for name in NAMES:
        for weights in (None, bed.weights):
            curvature, dense = made(bed, name, weights)
            if hasattr(curvature, "inverse"):
                rhs = normal(3, bed.engine.d)
                inverse = torch.linalg.inv(dense + DAMPING * torch.eye(bed.engine.d))
                assert torch.allclose(curvature.inverse(rhs, DAMPING), rhs @ inverse, atol=1e-8)
                closed.add(name)
    assert closed == {"ekfac", "identity"}


def test_ekfac_s_variances_are_the_best_of_its_basis(bed):
    """Nearer to the blocks of the Fisher than K-FAC's product of eigenvalues in the same basis."""
    g = bed.matrix(bed.batch["target"])
    fisher = g.T @ g / N
    owner = torch.cat([torch.full((p.stop - p.start,), i) for i, p in
                       enumerate(bed.slices().values())])  # fmt: skip
    blocks = fisher * (owner[:, None] == owner)
    pairs = bed.kronecker(torch.ones(N, dtype=torch.float64)).values()
    kfac = torch.block_diag(*(torch.kron(left, right) for left, right in pairs))
    assert (bed.dense("ekfac") - blocks).norm() < 0.9 * (kfac - blocks).norm()


@pytest.mark.parametrize("name", ["empirical_fisher", "ekfac"])
def test_every_square_counts_its_terms(bed, name):
    """Terms and weights of a Fisher matrix are one thing; of a Hessian terms are none."""
    terms = 1.0 + torch.arange(N, dtype=torch.float64) % 5
    v = normal(2, bed.engine.d)
    for weights in (None, bed.weights):
        both = terms if weights is None else terms * weights
        found = CURVATURES[name](replace(bed.parts(weights), terms=terms)).product(v)
        assert torch.allclose(found, CURVATURES[name](bed.parts(both)).product(v), atol=1e-10)
        assert not torch.allclose(found, CURVATURES[name](bed.parts(weights)).product(v))
    for other in ("identity", "ggn", "hessian"):
        found = CURVATURES[other](replace(bed.parts(), terms=terms)).product(v)
        assert torch.equal(found, CURVATURES[other](bed.parts()).product(v))


def test_a_single_vector_is_refused(bed):
    for name in ("ggn", "hessian", "empirical_fisher"):
        with pytest.raises(DataError, match="one row"):
            CURVATURES[name](bed.parts()).product(normal(bed.engine.d))
