"""Where an unrolled training is not smooth: gradients of 0 or nearly so, and unstable steps."""

from dataclasses import replace

import pytest
import torch
from fudlr.common.errors import NumericalError
from fudlr.gradients.store import Recipe
from fudlr.influence.unroll.adam import OptimiserStep, State
from test_unrolled import RATES, D, Memory, Trained, normal


def test_rounding_decides_no_influence(monkeypatch):
    """An entry whose gradients are nearly 0 in the first steps, with signs that rounding gives."""
    plain = Trained()

    def influence(signs):
        steps = [
            replace(step, mean=step.mean.index_fill(0, torch.tensor(4), 1e-8 * sign))
            for step, sign in zip(plain.steps[:2], signs, strict=True)
        ] + plain.steps[2:]
        state = State.at(plain.start)
        for t, step in enumerate(steps):
            one = OptimiserStep(plain.recipe, t + 1, float(RATES[t]), plain.start)
            state = one.move(state, step.mean)
        entry = torch.eye(D).double()[4:5]
        return plain.unrolled(Memory(steps), theta=state.theta).influence(entry)

    monkeypatch.setattr(plain, "recipe", replace(plain.recipe, l2=0.0))
    one, other = influence((1.0, -2.0)), influence((-1.0, 1.5))
    assert float((one - other).norm()) < 0.02 * float(one.norm())
    monkeypatch.setattr("fudlr.influence.unroll.adam.SMALL", 0.0)
    monkeypatch.setattr("fudlr.influence.unroll.unrolled.GROWTH", float("inf"))
    sharp, others = influence((1.0, -2.0)), influence((-1.0, 1.5))
    assert float((sharp - others).norm()) > 1e6 * float(one.norm())


def test_an_entry_without_any_gradient_stays():
    step, zero = OptimiserStep(Recipe(), 1, 0.1, torch.zeros(2).double()), torch.zeros(2).double()
    after = step.move(State.at(zero), zero)
    assert not after.theta.any()
    found = step.linear(State.at(zero), zero, after).tangent(State.at(zero[None]), zero[None])
    assert bool(found.theta.isfinite().all())


def test_unstable_steps_are_refused():
    """Of a curvature that is beyond what the rate allows."""
    plain = Trained()
    steep = [replace(step, rows=1e3 * step.rows) for step in plain.steps]
    with pytest.raises(NumericalError, match=r"step 1 of \d+ does grows .* lower rate"):
        plain.unrolled(Memory(steep)).influence(normal(66, 2, D))
