"""What sketches leave out of a training: removed samples' gradients, and the curvature."""

import pytest
import torch
from fudlr.gradients.projection import Projection
from fudlr.gradients.store import Recipe
from fudlr.gradients.store.shards import Step
from fudlr.influence.unroll import Unrolled
from fudlr.influence.unroll.adam import OptimiserStep, State
from fudlr.influence.unroll.exact import SPANS, LeftOut, quarter, spans

SHAPES = {"q.lora_A.w": (1, 3), "q.lora_B.w": (2, 1)}
RATE, SHARE = 0.1, 0.25
RECIPE = Recipe("AdamW", eps=1.0)  # so that the first step depends on more than signs
MASK = torch.tensor([0.0, 1.0, 0.0, 0.0]).double()


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


class InMemory:
    """A training of so many steps of four samples each, its rows sketched. A sample's gradient is
    its row times 1 + θ_0."""

    kept = False

    def __init__(self, count):
        self.count, self.rows = count, drawn(0, 4, 5)
        self._projection = Projection(SHAPES, {"q.lora_A.w": torch.eye(3)[:2]})

    def mean(self, step):
        return SHARE * self.rows.sum(0)

    def composition(self, step):
        return torch.arange(4), torch.full((4,), SHARE).double()

    def step(self, step):
        rows, (ids, shares) = self._projection.project(self.rows), self.composition(step)
        return Step(ids, rows, None, shares, self.mean(step), RATE, 1, 0)

    def projection(self, segment):
        return self._projection

    def outside(self, segment, vectors):
        return vectors - self._projection.lift(self._projection.project(vectors))

    def sums(self, theta, index, weights):
        return weights @ self.rows[index] * (1 + theta[0])

    def squares(self, theta, index, vectors):
        return ((vectors @ self.rows[index].T * (1 + theta[0])) ** 2).mean(1)


@pytest.mark.parametrize("count", [1, 3, 4, 10, 300])
def test_parts_have_every_step_once(count):
    found = spans(count)
    assert [t for span in found for t in span] == list(range(count))
    assert len(found) == min(count, SPANS)
    assert all(quarter(span) in span for span in found)


def test_gradients_and_curvature_are_taken_a_quarter_into_each_part():
    training, count, order = InMemory(10), 10, torch.tensor([4, 2, 0, 1, 3])
    thetas = {quarter(span): torch.full((5,), float(quarter(span))) for span in spans(count)}
    masks = torch.stack([MASK, torch.ones(4).double()])
    back = order.argsort()

    def outside(segment, vectors):
        return training.outside(segment, vectors[:, back])[:, order]

    left = LeftOut(
        training,
        training,
        lambda ids: masks[:, ids],
        n=4,
        thetas=thetas,
        order=order,
        outside=outside,
    )
    ratio, lost = torch.zeros(2, 1).double(), SHARE * masks @ training.rows
    for span in spans(count):
        for t in span:
            shifts = drawn(t, 2, 5)
            found = [each[:, back] for each in left.at(t, 0, shifts[:, order])]
            scale, beyond = 1 + quarter(span), training.outside(0, shifts)
            if t == quarter(span):
                dots = scale * beyond @ training.rows.T
                ratio = ((dots**2).mean(1) / (beyond**2).sum(1))[:, None]
            assert torch.allclose(found[0], training.outside(0, scale * lost))
            assert torch.allclose(found[1], ratio * beyond)


def unrolled_of(training, start):
    """The training by its rule, and where it ends; also without what is taken off each gradient."""

    def end(less=lambda t, state: 0.0):
        state = State.at(start)
        for t in range(training.count):
            gradient = training.mean(t) - less(t, state.theta)
            state = OptimiserStep(RECIPE, t + 1, RATE, start).move(state, gradient)
        return state.theta

    rates = torch.full((training.count,), RATE).double()
    unrolled = Unrolled(
        training, SHAPES, recipe=RECIPE, rates=rates, samples=4, start=start, theta=end()
    )
    return unrolled, end


def test_a_removed_samples_whole_gradient_is_taken_out():
    training, start = InMemory(1), drawn(2, 5)
    unrolled, end = unrolled_of(training, start)
    lost = SHARE * training.rows[1]
    seen = lost - training.outside(0, lost[None])[0]
    expected = end(lambda t, state: seen + (lost - seen) * (1 + start[0]))
    found = unrolled.update(MASK, 1.0, training)
    assert torch.allclose(found, expected, rtol=1e-12)
    assert not torch.allclose(found, unrolled.update(MASK), rtol=1e-3)


def test_curvature_outside_of_sketches_shortens_the_shift():
    training, start = InMemory(8), drawn(2, 5)
    unrolled, end = unrolled_of(training, start)

    class Flat(InMemory):
        def squares(self, theta, index, vectors):
            return torch.zeros(len(vectors)).double()

    ends = {each: unrolled.update(MASK, 1.0, each) for each in (training, Flat(8))}
    with_it, without = (training.outside(0, (each - end())[None]).norm() for each in ends.values())
    assert 0.5 * without < with_it < 0.99 * without
