"""Projections against dense algebra, and the directions against an eigendecomposition."""

from __future__ import annotations

import pytest
import torch
from fudlr.common.errors import DataError, UsageError
from fudlr.gradients import PrincipalAccumulator, Projection
from fudlr.gradients import projection as module
from fudlr.gradients.store import StoreError

SHAPES = {
    "x.lora_A.weight": (2, 6),
    "x.lora_B.weight": (8, 2),
    "y.lora_embedding_A": (2, 7),
    "y.lora_embedding_B": (9, 2),
}
D = 12 + 16 + 14 + 18


def rows(n=30, seed=0):
    """Gradients whose wide sides have a few strong directions."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for name, (a, b) in SHAPES.items():
        width = a if "_B" in name else b
        strength = 2.0 ** -torch.arange(width)
        turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        wide = torch.randn(n, 2, width, generator=generator) * strength @ turn
        parts.append((wide.mT if "_B" in name else wide).flatten(1))
    return torch.cat(parts, 1)


def fitted(energy=0.9):
    accumulator = PrincipalAccumulator(SHAPES)
    accumulator.add_rows(rows())
    return accumulator.fit(energy)


def dense(projection):
    """S as a matrix, from its action on the identity."""
    return projection.project(torch.eye(D)).T


def test_it_is_one_orthogonal_projection_factor_by_factor():
    projection = fitted(0.99)
    s = dense(projection)
    assert s.shape == (projection.dim, D)
    assert 0 < projection.dim < D
    assert [len(f[0]) for f in projection.factors.values()] == [6, 8, 7, 9], "their wide sides"
    torch.testing.assert_close(s @ s.T, torch.eye(len(s)), rtol=0, atol=1e-5)
    torch.testing.assert_close(projection.lift(torch.eye(len(s))), s, rtol=0, atol=1e-6)
    g = rows(4, seed=1)
    # B's gradient [8, 2] from its left, A's [2, 6] from its right.
    b = projection.factors["x.lora_B.weight"] @ g[:, 12:28].view(4, 8, 2)
    a = g[:, :12].view(4, 2, 6) @ projection.factors["x.lora_A.weight"].T
    found = projection.project(g)
    both = torch.cat([a.flatten(1), b.flatten(1)], 1)
    torch.testing.assert_close(found[:, : both.shape[1]], both)


def test_principal_directions_are_eigenvectors_and_keep_the_share_asked_for():
    projection = fitted()
    g, start = rows().double(), 0
    for name, (a, b) in SHAPES.items():
        matrix = g[:, start : start + a * b].view(-1, a, b)
        moment = torch.einsum("nij,nkj->ik" if "_B" in name else "nji,njk->ik", matrix, matrix)
        values = torch.linalg.eigvalsh(moment).flip(0)
        kept = projection.factors[name].double()
        share = float((kept @ moment @ kept.T).trace() / moment.trace())
        count = len(kept)
        assert share >= 0.9 - 1e-6
        assert float(values[: count - 1].sum() / values.sum()) < 0.9  # the fewest
        start += a * b
    assert projection.kept == pytest.approx(projection.energy_kept(rows()), abs=1e-5)


@pytest.mark.parametrize("energy", [0.9, 1.0])
def test_moments_of_wide_sides_are_made_of_halves_of_them(energy):
    shapes = {"x.lora_A.weight": (2, 301), "x.lora_B.weight": (200, 3)}
    scale = torch.cat([torch.logspace(0, -1, 602), torch.logspace(-1, 0, 600)])
    g = torch.randn(400, 1202, generator=torch.Generator().manual_seed(0)) * scale
    accumulator = PrincipalAccumulator(shapes)
    for part in g.split(150):
        accumulator.add_rows(part)
    found = accumulator.fit(energy)
    for name, part in zip(shapes, g.double().split([602, 600], 1), strict=True):
        matrix = part.unflatten(1, shapes[name])
        wide = (matrix.mT if "_B" in name else matrix).flatten(0, 1)
        values = torch.linalg.eigvalsh(wide.T @ wide).flip(0)
        count = int((values.cumsum(0) / values.sum() < energy - 1e-7).sum()) + 1
        directions = found.factors[name].double()
        assert len(directions) == min(count, len(values))
        assert float((directions @ directions.T - torch.eye(len(directions))).norm()) < 1e-4
        share = (wide @ directions.T).square().sum() / wide.square().sum()
        assert float(share) == pytest.approx(float(values[:count].sum() / values.sum()), abs=1e-6)


def test_a_wide_side_is_decomposed_on_the_way(monkeypatch):
    exact = fitted()
    monkeypatch.setattr(module, "EXACT_WIDTH", 4)
    monkeypatch.setattr(module, "KEPT_DIRECTIONS", 8)
    found = fitted()
    for name, factor in exact.factors.items():
        assert factor.shape == found.factors[name].shape
        overlap = torch.linalg.svdvals(factor @ found.factors[name].T)
        assert float(overlap.min()) > 0.999


def test_a_matrix_without_any_gradient_is_left_out():
    accumulator, g = PrincipalAccumulator(SHAPES), rows()
    g[:, :12] = 0
    accumulator.add_rows(g)
    projection = accumulator.fit(0.9)
    assert "x.lora_A.weight" not in projection.factors
    assert not projection.lift(torch.ones(1, projection.dim))[:, :12].any()


def test_saved_and_read_and_damaged(tmp_path):
    path = tmp_path / "projection.safetensors"
    projection = fitted()
    projection.save(path)
    found = Projection.load(path)
    assert found.description() == projection.description()
    assert torch.equal(found.project(rows()), projection.project(rows()))
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError, match="does not match its checksum"):
        Projection.load(path)
    path.unlink()
    with pytest.raises(StoreError, match="no such file"):
        Projection.load(path)


def test_what_cannot_be():
    with pytest.raises(UsageError, match="no gradient was added"):
        PrincipalAccumulator(SHAPES).fit(0.9)
    with pytest.raises(UsageError, match="another width"):
        Projection(SHAPES, {"x.lora_A.weight": torch.ones(1, 5)})
    with pytest.raises(DataError, match=r"v\[None\]"):
        fitted().project(torch.ones(D))
