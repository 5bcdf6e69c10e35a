"""Every curvature of the table on one suite: dense matrices by definition, and what it claims."""

from dataclasses import replace

import pytest
import torch
from fudlr.common.batches import Batches
from fudlr.common.errors import DataError, UsageError
from fudlr.gradients.store import MemoryRows, StreamedRows
from fudlr.influence.curvature import CURVATURES, BlockFisher, Invertible, TrueFisher
from fudlr.influence.curvature.blocks import block_slices
from sequence_bed import SEED, STEPS, N, SequenceBed, forward, loss
from torch import nn

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
    curvature = CURVATURES[name].make(bed.parts(weights))
    if name == "true_fisher":
        bed.drawn.clear()
        curvature.product(torch.zeros(1, bed.engine.d, dtype=torch.float64))
    dense = bed.dense(name, weights)
    return curvature, dense


@pytest.fixture(scope="module", params=NAMES)
def case(request, bed):
    return (request.param, *made(bed, request.param))


def test_the_product_is_the_definition_s(bed, case):
    name, curvature, dense = case
    assert curvature.name == name
    v = normal(3, bed.engine.d)
    assert torch.allclose(curvature.product(v), v @ dense, atol=1e-10)
    assert dense.abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name in NAMES if name != "identity"])
def test_weights_are_the_samples_own(bed, name):
    for weights in (bed.weights, (bed.weights > 0.3).double()):
        curvature, dense = made(bed, name, weights)
        v = normal(2, bed.engine.d)
        assert torch.allclose(curvature.product(v), v @ dense, atol=1e-10)
    assert not torch.allclose(dense, made(bed, name)[1], atol=1e-3)


def test_linear_and_symmetric(bed, case):
    _, curvature, _ = case
    v, w = normal(2, bed.engine.d), normal(2, bed.engine.d, seed=1)
    product = curvature.product
    assert torch.allclose(product(2 * v - w), 2 * product(v) - product(w), atol=1e-10)
    assert torch.allclose(product(v) @ w.T, v @ product(w).T, atol=1e-10)
    assert product(v[:0]).shape == (0, bed.engine.d)


def test_semidefinite_where_claimed(case):
    name, curvature, dense = case
    lowest = float(torch.linalg.eigvalsh(dense)[0])
    assert curvature.semidefinite == (lowest > -1e-12), name


def test_layers_are_coupled_where_claimed(bed, case):
    name, curvature, dense = case
    start = bed.slices()[bed.engine.names[2]].start  # the second module
    across = dense[:start, start:].abs().max()
    assert curvature.couples_layers == bool(across > 1e-6), name
    assert type(curvature).couples_layers == curvature.couples_layers


def test_closed_forms_are_their_definition_s_inverse(bed):
    closed = []
    for name in NAMES:
        for weights in (None, bed.weights):
            curvature = CURVATURES[name].make(bed.parts(weights))
            if isinstance(curvature, Invertible):
                rhs = normal(3, bed.engine.d)
                expected = rhs @ bed.dense_inverse(name, DAMPING, weights)
                assert torch.allclose(curvature.inverse(rhs, DAMPING), expected, atol=1e-8), name
                closed.append(name)
    assert sorted(set(closed)) == ["datainf", "ekfac", "kfac"]


def test_datainf_is_not_the_block_fisher_s_inverse(bed):
    """The mean of inverses is larger than the inverse of the mean (it is convex)."""
    rhs = normal(1, bed.engine.d)
    ours = rhs @ bed.dense_inverse("datainf", DAMPING) @ rhs.T
    exact = rhs @ bed.dense_inverse("block_fisher", DAMPING) @ rhs.T
    assert float(ours) > 1.05 * float(exact)
    curvature = CURVATURES["datainf"].make(bed.parts())
    with pytest.raises(UsageError, match="damping of 0"):
        curvature.inverse(rhs, 0.0)


def test_ekfac_is_the_closest_of_its_basis(bed):
    """EK-FAC's variances are the best in K-FAC's basis: nearer to the blocks of the Fisher."""
    g = bed.matrix(bed.batch["target"])
    fisher = g.T @ g / N
    owner = torch.cat([torch.full((p.stop - p.start,), i) for i, p in
                       enumerate(bed.slices().values())])  # fmt: skip
    blocks = fisher * (owner[:, None] == owner)
    errors = {name: float((bed.dense(name) - blocks).norm()) for name in ("kfac", "ekfac")}
    assert errors["ekfac"] < 0.9 * errors["kfac"]


def test_drawn_labels_are_the_model_s_and_the_seed_s(bed):
    parts = bed.parts()
    face = (parts.engine, parts.forward, parts.loss, parts.batches)
    v = normal(2, bed.engine.d)

    def product(draws, seed):
        return TrueFisher(*face, draw=bed.draw, draws=draws, seed=seed).product(v)

    assert torch.equal(product(1, SEED), product(1, SEED))
    assert not torch.allclose(product(1, SEED), product(1, SEED + 1), atol=1e-4)
    expected = v @ bed.dense("ggn")  # the mean over all labels
    errors = [float((product(draws, 0) - expected).norm() / expected.norm()) for draws in (4, 400)]
    assert errors[1] < 0.1 < 2 * errors[0]  # falls as 1/√draws
    assert errors[1] < errors[0] / 3
    with pytest.raises(UsageError, match="no distribution"):
        TrueFisher.make(type(parts)(*face, parts.rows))
    with pytest.raises(UsageError, match="at least one"):
        product(0, 0)


def test_a_mean_of_terms_is_as_curved_as_its_terms(bed):
    """With labels drawn for every position, T times the square is the GGN; without T too little."""
    real = bed.batch["real"]
    terms = real.sum(dim=1)
    target = torch.zeros(N, STEPS, dtype=torch.int64)

    def logits(model, batch):
        net = model.base_model.model
        return torch.tanh(net.second(torch.tanh(net.first(batch["x"])))) @ net.readout

    def mean_loss(outputs, batch):
        each = nn.functional.cross_entropy(outputs.mT, batch["target"], reduction="none")
        return (each * batch["real"]).sum(dim=1) / batch["real"].sum(dim=1)

    def draw(outputs, batch, generator):
        p = outputs.softmax(dim=2).flatten(0, 1)
        drawn = torch.multinomial(p, 1, generator=generator).view(len(outputs), STEPS)
        return {**batch, "target": drawn}

    batch = {"x": bed.batch["x"], "real": real, "target": target}
    given = replace(bed.parts(), forward=logits, loss=mean_loss, batches=Batches([batch]))
    v = normal(2, bed.engine.d)
    expected = bed.engine.ggn_vp(logits, mean_loss, batch, v)
    errors = []
    for counted in (terms, None):
        parts = replace(given, terms=counted)
        face = (parts.engine, parts.forward, parts.loss, parts.batches, parts.of_squares)
        found = TrueFisher(*face, draw=draw, draws=100).product(v)
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[0] < 0.12
    assert errors[1] > 0.3


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"identity", "ggn", "hessian"}))
def test_every_square_counts_its_terms(bed, name):
    """Terms and weights of a Fisher matrix are one thing; of a Hessian terms are none."""
    terms = 1.0 + torch.arange(N, dtype=torch.float64) % 5
    v = normal(2, bed.engine.d)
    for weights in (None, bed.weights):
        both = terms if weights is None else terms * weights
        found = CURVATURES[name].make(replace(bed.parts(weights), terms=terms)).product(v)
        assert torch.allclose(found, CURVATURES[name].make(bed.parts(both)).product(v), atol=1e-10)
        assert not torch.allclose(found, CURVATURES[name].make(bed.parts(weights)).product(v))
    for other in ("identity", "ggn", "hessian"):
        found = CURVATURES[other].make(replace(bed.parts(), terms=terms)).product(v)
        assert torch.equal(found, CURVATURES[other].make(bed.parts()).product(v))


def test_blocks_of_recomputed_rows_and_of_matrices(bed):
    parts = bed.parts()
    streamed = StreamedRows(parts.engine, forward, loss, parts.batches)
    v = normal(2, bed.engine.d)
    for grain in ("matrix", "module"):
        blocks = block_slices(bed.engine.shapes, grain)
        assert sum(part.stop - part.start for part in blocks) == bed.engine.d
        stored, anew = (BlockFisher(rows, blocks, bed.weights) for rows in (parts.rows, streamed))
        assert torch.allclose(stored.product(v), anew.product(v), atol=1e-10)
    assert len(block_slices(bed.engine.shapes, "matrix")) == 4
    assert len(blocks) == 2


def test_a_single_vector_is_refused(bed):
    for name in ("ggn", "hessian", "empirical_fisher"):
        with pytest.raises(DataError, match="one row"):
            CURVATURES[name].make(bed.parts()).product(normal(bed.engine.d))
    assert isinstance(bed.parts().rows, MemoryRows)
