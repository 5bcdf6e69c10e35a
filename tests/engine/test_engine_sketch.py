"""Sketches: the projection of the full gradients, without the gradients."""

import pytest
import torch
from engine_models import adapted, batch_of, llama, relative
from fudlr.gradients import PrincipalAccumulator

from fudlr_ext import Engine, EngineError, label_logits, label_loss

FACE = (label_logits, label_loss)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_it_is_the_projection_of_the_gradients(dtype):
    engine, batch = Engine(adapted(llama(), dtype)), batch_of()
    rows = engine.sample_grads(*FACE, batch)
    directions = PrincipalAccumulator(engine.shapes)
    directions.add_rows(rows)
    projection = directions.fit(energy=0.8)
    got = engine.sample_sketch(*FACE, batch, projection.sides)
    assert got.dtype == dtype
    assert got.shape == (5, projection.dim)
    assert relative(got, projection.project(rows)) <= TOLERANCE[dtype]


def test_blocks_stand_in_flat_order_and_sides_may_be_missing():
    engine, batch = Engine(adapted(llama())), batch_of()
    rows = engine.unflatten(engine.sample_grads(*FACE, batch))
    first, second, third = engine.names[1], engine.names[2], engine.names[5]
    left = torch.randn(3, engine.shapes[second][0])
    right = torch.randn(2, engine.shapes[second][1])
    sides = {third: (None, None), second: (left, right), first: (None, None)}
    got = engine.sample_sketch(*FACE, batch, sides)
    parts = [rows[first], left @ rows[second] @ right.T, rows[third]]
    assert relative(got, torch.cat([part.flatten(1) for part in parts], 1)) <= 1e-5


def test_projections_that_do_not_fit_are_refused():
    engine, batch = Engine(adapted(llama())), batch_of()
    name = engine.names[1]
    with pytest.raises(EngineError, match="no matrix has the name 'q'"):
        engine.sample_sketch(*FACE, batch, {"q": (None, None)})
    with pytest.raises(EngineError, match="none is named"):
        engine.sample_sketch(*FACE, batch, {})
    with pytest.raises(EngineError, match=r"projection \[q, 32\] was expected"):
        engine.sample_sketch(*FACE, batch, {name: (torch.ones(3, 31), None)})
    with pytest.raises(EngineError, match=r"projection \[q, 4\] was expected"):
        engine.sample_sketch(*FACE, batch, {name: (None, torch.ones(4))})
