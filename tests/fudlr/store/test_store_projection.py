from __future__ import annotations

import pytest
import torch
from fudlr.common.errors import UsageError
from fudlr.config import RecordConfig
from fudlr.gradients.store import (
    Factors,
    PrincipalAccumulator,
    Projection,
    StoreError,
    random_projection,
)
from fudlr.gradients.store import principal as principal_module
from fudlr.gradients.store.encoding import row_bytes
from fudlr.gradients.store.fitting import ROW_EXTRA, fit
from fudlr.gradients.store.principal import SecondMoment
from fudlr.gradients.store.random_projection import KINDS, random_factor
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPES = {
    "0.q_proj.lora_A.weight": (3, 10),
    "0.q_proj.lora_B.weight": (12, 3),
    "0.v_proj.lora_A.weight": (3, 10),
    "0.v_proj.lora_B.weight": (7, 3),
}
D = sum(a * b for a, b in SHAPES.values())


def gradients(n: int, seed: int = 0) -> torch.Tensor:
    """Flat gradients of falling spectrum, in float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(D, D, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, -3, D, dtype=torch.float64)
    return torch.randn(n, D, generator=generator, dtype=torch.float64) * scale @ mix


def fitted(matrices="B", **choice) -> Projection:
    found = PrincipalAccumulator(SHAPES, matrices)
    found.add_rows(gradients(40))
    return found.fit(**choice)


def dense(projection: Projection) -> torch.Tensor:
    """S as a matrix `[p, d]`."""
    return projection.project(torch.eye(projection.d, dtype=torch.float64)).T


@pytest.mark.parametrize("matrices", ["B", "both"])
def test_principal_is_an_orthogonal_projection(matrices):
    projection = fitted(matrices, dims=4)
    s = dense(projection)
    eye = torch.eye(projection.dim, dtype=torch.float64)
    torch.testing.assert_close(s @ s.T, eye, atol=1e-6, rtol=0)
    g = gradients(5, seed=1)
    once = projection.lift(projection.project(g))
    torch.testing.assert_close(projection.lift(projection.project(once)), once, atol=1e-6, rtol=0)
    torch.testing.assert_close(projection.lift(eye), s, atol=0, rtol=0)


def test_dimensions_are_those_that_the_blocks_say():
    both = fitted("both", dims=4)
    assert both.dim == 4 * 3 * 4
    assert [block.sketch_shape for block in both.blocks] == [(3, 4), (4, 3), (3, 4), (4, 3)]
    only_b = fitted("B", dims=4)
    assert only_b.dim == 2 * 4 * 3
    a_side = torch.zeros(1, D, dtype=torch.float64)
    a_side[:, :30] = 1
    assert only_b.project(a_side).abs().max() == 0


def test_inner_products_are_kept_in_the_span():
    projection = fitted(dims=3)
    g = projection.lift(torch.randn(6, projection.dim, dtype=torch.float64))
    sketch = projection.project(g)
    torch.testing.assert_close(sketch @ sketch.T, g @ g.T, rtol=1e-5, atol=1e-5)
    assert projection.energy_kept(g) == pytest.approx(1, abs=1e-6)
    assert projection.products_kept(g, g) == pytest.approx(1, abs=1e-6)
    assert projection.products_kept(gradients(5), gradients(3, 1)) < 0.999


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank_dims", [None, 2])
def test_random_sketches_are_unbiased(kind, rank_dims):
    shapes, d, count = dict(list(SHAPES.items())[:2]), 66, 400
    total = torch.zeros(d, d, dtype=torch.float64)
    for seed in range(count):
        s = dense(
            random_projection(shapes, 5, kind=kind, seed=seed, matrices="both", rank_dims=rank_dims)
        )
        total += s.T @ s
    error = total / count - torch.eye(d, dtype=torch.float64)
    # Entries of SᵀS have a standard deviation of order 1; five of them, over √count.
    assert error.abs().max() < 5 * 2.5 / count**0.5
    assert error.diagonal().mean().abs() < 0.05


def test_random_sketches_are_reproducible_and_differ_by_seed_and_matrix():
    one, same, other = (random_projection(SHAPES, 5, seed=seed) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    a = random_factor("gaussian", 3, 8, "0/x/left")
    assert not torch.equal(a, random_factor("gaussian", 3, 8, "0/y/left"))


def test_orthonormal_rows_and_countsketch_columns():
    rows = random_factor("orthonormal", 4, 12, "k").double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(4).double() * 3, atol=1e-6, rtol=0)
    count = random_factor("countsketch", 4, 12, "k")
    assert bool((count.abs().sum(0) == 1).all())
    wide = random_factor("countsketch", 4, 400, "k").sum(0)
    assert abs(float(wide.mean())) < 5 / 400**0.5  # as many of each sign, or it is biased
    assert bool(((count == 0) | (count.abs() == 1)).all())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 9), st.sampled_from([None, 1, 2, 5]))
def test_the_sketch_of_the_factors_is_the_projected_gradient(seed, positions, rank_dims):
    projection = random_projection(
        SHAPES, 4, kind="gaussian", seed=seed, matrices="both", rank_dims=rank_dims
    )
    generator = torch.Generator().manual_seed(seed)
    flat, sketch = [], []
    for name, (a, b) in SHAPES.items():
        left = torch.randn(positions, a, generator=generator, dtype=torch.float64)
        right = torch.randn(positions, b, generator=generator, dtype=torch.float64)
        flat.append((left.T @ right).flatten())
        small_left, small_right = projection.reduce(name, left, right)
        sketch.append((small_left.T @ small_right).flatten())
    exact = projection.project(torch.cat(flat)[None])
    torch.testing.assert_close(torch.cat(sketch)[None], exact, rtol=1e-9, atol=1e-9)


def test_principal_directions_are_the_eigenvectors():
    g = gradients(40)
    found = PrincipalAccumulator(SHAPES, "both")
    found.add_rows(g)
    b = g[:, 30:66].unflatten(1, (12, 3))
    values, vectors = torch.linalg.eigh((b @ b.mT).sum(0))
    directions = found.directions("0.q_proj.lora_B.weight", 2).double()
    overlap = (directions @ vectors[:, -2:].flip(1)).diagonal().abs()
    torch.testing.assert_close(overlap, torch.ones(2).double(), atol=1e-5, rtol=0)
    a = g[:, :30].unflatten(1, (3, 10))
    values, vectors = torch.linalg.eigh((a.mT @ a).sum(0))
    top = found.directions("0.q_proj.lora_A.weight", 1).double() @ vectors[:, -1]
    assert abs(float(top)) == pytest.approx(1, abs=1e-5)
    assert values[-1] > 0


def test_factors_of_positions_serve_as_well():
    delta = torch.randn(100, 12) * torch.logspace(0, -2, 12)
    found = PrincipalAccumulator(SHAPES)
    found.add("0.q_proj.lora_B.weight", delta.view(20, 5, 12))
    top = found.directions("0.q_proj.lora_B.weight", 1)
    exact = torch.linalg.svd(delta).Vh[0]
    assert abs(float(top @ exact)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_fewest_directions_that_keep_the_energy(energy):
    projection = fitted(energy=energy)
    g = gradients(40)
    for block in projection.blocks:
        a, b = block.shape
        part = g[:, block.start : block.start + a * b].unflatten(1, (a, b))
        values = torch.linalg.eigvalsh((part @ part.mT).sum(0)).flip(0)
        shares = values.cumsum(0) / values.sum()
        count = block.sketch_shape[0]
        assert shares[count - 1] >= energy - 1e-5
        assert count == 1 or shares[count - 2] < energy + 1e-5
    assert projection.kept >= energy - 1e-5


def test_the_cap_holds_and_the_kept_share_is_reported():
    free = fitted(energy=0.99)
    capped = fitted(energy=0.99, cap=18)
    assert capped.dim <= 18 < free.dim
    assert capped.kept < free.kept
    only_b = torch.zeros(D, dtype=torch.bool)
    only_b[30:66] = only_b[96:] = True
    assert capped.energy_kept(gradients(40) * only_b) == pytest.approx(capped.kept, abs=1e-4)
    with pytest.raises(UsageError, match="at most 5"):
        fitted(energy=0.9, cap=5)
    with pytest.raises(UsageError, match="at most 18"):
        fitted(dims=4, cap=18)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_by_default_an_energy_decides_and_a_row_is_at_most_a_tenth_of_the_gradient(dtype):
    shapes = {"x.lora_A.weight": (2, 100), "x.lora_B.weight": (400, 2)}
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 1000, generator=generator) * torch.linspace(2, 0, 1000).exp()
    accumulator = PrincipalAccumulator(shapes)
    accumulator.add_rows(rows)
    config = RecordConfig(dtype=dtype)
    assert (config.energy, config.dims) == (0.9, None)
    found = fit(accumulator, config)
    size = row_bytes(found.dim, dtype) / (4 * 1000)
    assert size <= 0.1
    assert size > 0.1 - (ROW_EXTRA + 2 * 4 + 2 * 4) / 4000  # no direction more would have fitted
    assert found.kept < 0.9
    sharp = PrincipalAccumulator(shapes)
    sharp.add_rows(rows * (torch.arange(1000) < 206))  # three of the wide side's directions
    few = fit(sharp, config)
    assert few.kept >= 0.9
    assert few.dim == 2 * 3
    chosen = fit(accumulator, RecordConfig(dtype=dtype, dims=150))
    assert chosen.dim == 2 * 150  # asked for by number, it is what was asked for


def test_bad_choices_are_refused():
    for choice in ({}, {"dims": 2, "energy": 0.5}, {"dims": 0}, {"energy": 1.5}):
        with pytest.raises(UsageError):
            fitted(**choice)
    with pytest.raises(UsageError, match="no gradient was added"):
        PrincipalAccumulator(SHAPES).fit(dims=1)
    with pytest.raises(UsageError):
        random_projection(SHAPES, 3, kind="fourier")
    with pytest.raises(UsageError, match="none among"):
        random_projection({"x.weight": (2, 2)}, 3)
    wrong = {"0.q_proj.lora_B.weight": Factors(left=torch.ones(2, 5))}
    with pytest.raises(UsageError, match="wrong shape"):
        Projection(SHAPES, wrong, kind="mine")
    with pytest.raises(UsageError, match="v\\[None\\]"):
        fitted(dims=1).project(torch.ones(D))


def test_a_wide_moment_is_kept_by_its_leading_directions(monkeypatch):
    monkeypatch.setattr(principal_module, "EXACT_WIDTH", 10)
    monkeypatch.setattr(principal_module, "KEPT_DIRECTIONS", 20)
    vectors = torch.randn(500, 60) * torch.logspace(0, -3, 60)
    moment = SecondMoment(60)
    for part in vectors.split(33):
        moment.add(part)
    values, directions = moment.eigen()
    exact = torch.linalg.svdvals(vectors.double()).square()
    torch.testing.assert_close(values[:8], exact[:8], rtol=1e-3, atol=0)
    assert moment.trace == pytest.approx(float(exact.sum()), rel=1e-6)
    torch.testing.assert_close(
        directions @ directions.T, torch.eye(len(values)).double(), atol=1e-4, rtol=0
    )


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "projection.safetensors"
    projection = fitted("both", energy=0.9)
    projection.save(path)
    found = Projection.load(path)
    assert found.description() == projection.description()
    g = gradients(3)
    assert torch.equal(found.project(g), projection.project(g))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError, match="checksum"):
        Projection.load(path)
    path.write_bytes(raw[:100])
    with pytest.raises(StoreError, match="cannot be read"):
        Projection.load(path)
    with pytest.raises(StoreError, match="cannot be read"):
        Projection.load(tmp_path / "nothing")
