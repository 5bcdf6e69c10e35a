"""Newton steps from the closed form, against real retraining on the near-exact bed."""

import math

import pytest
import torch
from bed import L2, Bed, N
from fudlr.common.batches import Batches
from fudlr.gradients import MemoryRows
from fudlr.influence.curvature import Hessian, Parts
from fudlr.influence.mask import threshold_mask
from fudlr.influence.scores import influence
from fudlr.influence.solvers import make_solver
from fudlr.influence.update import KeptLoss, newton_update, removal_update
from torch.func import grad

OPTIONS = {"max_steps": 300, "tolerance": 1e-10}


@pytest.fixture(scope="module")
def rows(bed: Bed):
    return MemoryRows(bed.matrix)


def parts(bed: Bed, rows, weights=None):
    index = torch.arange(N).split(700)
    batches = Batches([bed.recommender.collate(bed.train.take(part)) for part in index])
    face = (bed.engine, bed.recommender.forward, bed.recommender.loss)
    return Parts(rows, weights, None, *face, batches)


@pytest.fixture(scope="module")
def hessian(bed: Bed, rows):
    def solve(weights=None):
        return make_solver(Hessian(parts(bed, rows, weights)), L2, **OPTIONS)

    return solve


@pytest.fixture(scope="module", params=[0.05, 0.2])
def removal(request, bed: Bed, rows, hessian):
    """(mask of the strongest influence, retraining's change of the metric)."""
    found = influence(rows, {"arp": bed.metric_gradient}, hessian())
    mask = threshold_mask(found.of("arp"), request.param).remove.double()
    return mask, change(bed, bed.retrain(mask))


def change(bed: Bed, theta):
    return float(bed.metric(theta) - bed.metric(bed.theta))


def kept_loss(bed: Bed, rows, mask, theta=None):
    return KeptLoss(parts(bed, rows), mask, bed.theta if theta is None else theta, bed.start, L2)


def test_newton_steps_go_to_retraining_s_optimum(bed, rows, hessian, removal):
    mask, actual = removal
    kept, weights = kept_loss(bed, rows, mask), 1 - mask
    first = removal_update(bed.theta, rows, mask, hessian())
    one_step = abs(change(bed, first.theta) / actual - 1)
    assert one_step > 0.05  # what the steps mend
    found = [newton_update(first, kept, lambda: hessian(weights), steps) for steps in (2, 7)]
    errors = [abs(change(bed, each.theta) / actual - 1) for each in found]
    assert errors[0] < one_step
    assert errors[1] < 1e-4
    steps = found[0].details["newton"]
    # Armijo's rule promises a lower loss; the gradient's norm may rise on the way (.1177 to .1194).
    assert steps[1]["value"] < steps[0]["value"]
    assert found[1].details["newton"][-1]["gradient"] < 1e-2 * steps[0]["gradient"]
    assert torch.equal(bed.engine.theta(), bed.theta)


def test_kept_loss_is_the_loss_without_the_samples(bed, rows, removal):
    mask, _ = removal
    theta = bed.theta + 0.05 * torch.randn(
        rows.d, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )

    def plain(t):
        return bed.objective(t, 1 - mask)

    kept = kept_loss(bed, rows, mask)
    value, gradient = kept.value_and_gradient(theta)
    at_start, _ = kept.value_and_gradient(bed.theta)
    # θ* is an optimum here: nothing is held.
    assert torch.allclose(gradient, grad(plain)(theta), atol=1e-8)
    assert math.isclose(value - at_start, float(plain(theta) - plain(bed.theta)), rel_tol=1e-6)


def test_the_gradient_that_training_left_is_held(bed, rows, hessian):
    """At a point that is no optimum nothing moves without a removal."""
    nothing = torch.zeros(N, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    early = bed.theta + 0.003 * torch.randn(rows.d, generator=generator, dtype=torch.float64)
    assert grad(bed.objective)(early, 1 - nothing).norm() > 1e-4
    bed.engine.load(early)
    try:
        face = (bed.recommender.forward, bed.recommender.loss)
        g = bed.engine.sample_grads(*face, bed.recommender.collate(bed.train))
        held = kept_loss(bed, MemoryRows(g), nothing, early)
        assert held.value_and_gradient(early)[1].norm() < 1e-10
        still = removal_update(early, MemoryRows(g), nothing, hessian())
        assert float(still.delta.norm()) == 0
    finally:
        bed.engine.load(bed.theta)


def test_newton_stops_where_nothing_descends(bed, rows, hessian, removal):
    mask, _ = removal
    kept = kept_loss(bed, rows, mask)
    first = removal_update(bed.theta, rows, mask, hessian())

    def uphill(rhs):
        solution = hessian()(rhs)
        return type(solution)(-solution.x, *list(vars(solution).values())[1:])

    found = newton_update(first, kept, lambda: uphill, 3)
    assert torch.equal(found.theta, first.theta)
    assert found.details["newton"][0]["alpha"] == 0
    assert any("no descent" in warning for warning in found.warnings)
