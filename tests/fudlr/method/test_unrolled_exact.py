"""What is taken again of a step, and how often it counts."""

import pytest
import torch
from fudlr.gradients.projection import Projection
from fudlr.gradients.store import Recipe
from fudlr.gradients.store.shards import Step
from fudlr.influence.unroll import Unrolled
from fudlr.influence.unroll.adam import OptimiserStep, State
from fudlr.influence.unroll.exact import Chosen

SHAPES = {"q.lora_A.w": (1, 3), "q.lora_B.w": (2, 1)}
RATE, SHARE = 0.1, 0.25
RECIPE = Recipe("AdamW", eps=1.0)  # so that the first step depends on more than signs
GONE = torch.tensor([[0.0, SHARE, 0.0, 0.0]]).double()


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


class OneStep:
    """A training of one step in memory, its rows sketched; of so many epochs, it says."""

    kept, count = False, 1

    def __init__(self, epochs):
        self.epochs, self.rows = epochs, drawn(0, 4, 5)
        self._projection = Projection(SHAPES, {"q.lora_A.w": torch.eye(3)[:2]})

    def mean(self, step):
        return SHARE * self.rows.sum(0)

    def step(self, step):
        rows, shares = self._projection.project(self.rows), torch.full((4,), SHARE).double()
        return Step(torch.arange(4), rows, None, shares, self.mean(0), RATE, 1, 0)

    def projection(self, segment):
        return self._projection

    def exact(self, theta, index, weights, share, vectors):
        rows = self.rows[index]
        return weights @ rows, (vectors @ rows.T * share) @ rows


def test_long_trainings_are_taken_again_every_few_steps():
    for epochs, every in ((1, 1), (7, 1), (8, 2), (10, 2), (12, 3)):
        found = [Chosen.of(t, GONE, epochs) for t in range(12)]
        assert [t for t, each in enumerate(found) if each] == list(range(0, 12, every))
        assert {each.times for each in found if each} == {every}
    assert found[0].removed.tolist() == [1]
    assert found[0].few.sort().values.tolist() == [0, 2, 3]


def test_one_pass_has_the_removed_and_the_kept():
    training, chosen = OneStep(1), Chosen.of(0, GONE, 1)
    vectors, kept = drawn(1, 1, 5), training.rows[[0, 2, 3]]
    face = (training.exact, torch.zeros(5), torch.arange(4), GONE)
    lost, curved = chosen.again(*face, vectors)
    assert torch.allclose(lost, GONE @ training.rows)
    assert torch.allclose(curved, vectors @ kept.T @ kept / 3)
    lost, curved = chosen.again(*face, torch.zeros(1, 5).double())
    assert torch.allclose(lost, GONE @ training.rows)
    assert not curved.any()


@pytest.mark.parametrize(("epochs", "times"), [(1, 1), (8, 2)])
def test_what_sketches_leave_out_counts_as_often_as_it_is_passed_over(epochs, times):
    training, start = OneStep(epochs), drawn(2, 5)
    step = OptimiserStep(RECIPE, 1, RATE, start)

    def end(gradient):
        return step.move(State.at(start), gradient).theta

    rates = torch.tensor([RATE]).double()
    unrolled = Unrolled(
        training, SHAPES, recipe=RECIPE, rates=rates, samples=4, start=start,
        theta=end(training.mean(0)),
    )  # fmt: skip
    lost = SHARE * training.rows[1]
    seen = training.projection(0).lift(training.projection(0).project(lost[None]))[0]
    expected = end(training.mean(0) - seen - times * (lost - seen))
    mask = torch.tensor([0.0, 1.0, 0.0, 0.0])
    found = unrolled.update(mask, 1.0, training.exact)
    assert torch.allclose(found, expected, rtol=1e-12)
    assert not torch.allclose(found, unrolled.update(mask), rtol=1e-3)
