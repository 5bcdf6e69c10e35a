"""What rounding makes of an unrolled training's influences."""

from dataclasses import replace

import torch
from fudlr.influence.unroll.adam import OptimiserStep, State
from test_unrolled import RATES, D, Memory, Trained


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
