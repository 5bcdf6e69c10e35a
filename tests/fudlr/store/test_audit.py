"""The audit's figures are its formulas, written out densely."""

from __future__ import annotations

import pytest
import torch
from fudlr.gradients import PrincipalAccumulator
from fudlr.gradients.recording import PROBES, audit_rows

SHAPES = {"x.lora_A.weight": (2, 6), "x.lora_B.weight": (8, 2)}


def test_the_figures_are_those_of_the_formulas():
    generator = torch.Generator().manual_seed(3)
    g = torch.randn(13, 28, generator=generator, dtype=torch.float64)
    accumulator = PrincipalAccumulator(SHAPES)
    accumulator.add_rows(g.float())
    projection = accumulator.fit(0.8)
    s = projection.project(g)
    stored = s + 0.1 * torch.randn(s.shape, generator=generator, dtype=torch.float64)
    signs = torch.randint(2, (PROBES, 7), generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0

    def influences(rows):
        own, probes = rows[:6], signs.double() @ rows[6:]
        h = own.T @ own / 6 + 0.2 * torch.eye(rows.shape[1], dtype=torch.float64)
        return own @ torch.linalg.solve(h, probes.T)

    exact, sketched = influences(g), influences(s)
    found = audit_rows(g, stored, projection, 0.2)
    kept = 1 - float((sketched - exact).square().sum() / exact.square().sum())
    assert found["influences"] == pytest.approx(kept, rel=1e-6)
    assert found["energy"] == pytest.approx(float(s.square().sum() / g.square().sum()))
    assert found["error"] == pytest.approx(float((stored - s).norm() / s.norm()))
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(stored, s, strict=True)]
    assert found["cosine"] == pytest.approx(sum(cosines) / 13)
    assert found["samples"] == 13
