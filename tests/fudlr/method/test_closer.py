"""Beyond one step: the series, Newton's method and the kept curvature against real retraining."""

import math

import pytest
import torch
from bed import L2, Bed, N
from fudlr.common.batches import Batches
from fudlr.common.errors import UsageError
from fudlr.gradients.store import MemoryRows
from fudlr.influence.curvature import GGN, Hessian
from fudlr.influence.mask import threshold_mask
from fudlr.influence.scores import influence
from fudlr.influence.solvers import make_solver
from fudlr.influence.update import KeptLoss, newton_update, removal_update, series_update
from torch.func import grad

OPTIONS = {"max_steps": 300, "tolerance": 1e-10}


@pytest.fixture(scope="module")
def rows(bed: Bed):
    return MemoryRows(bed.matrix)


@pytest.fixture(scope="module")
def face(bed: Bed):
    return bed.engine, bed.recommender.forward, bed.recommender.loss


def batches(bed: Bed, index=None, sizes=(700, 500)):
    index = torch.arange(N) if index is None else index
    parts = index.split(sizes[0])
    return Batches([bed.recommender.collate(bed.train.take(part)) for part in parts])


@pytest.fixture(scope="module")
def hessian(bed: Bed, face):
    def solve(weights=None):
        return make_solver(Hessian(*face, batches(bed), weights), L2, **OPTIONS)

    return solve


@pytest.fixture(scope="module", params=[0.05, 0.2])
def removal(request, bed: Bed, rows, hessian):
    """(share, mask of the strongest influence, retraining's change of the metric)."""
    found = influence(rows, {"arp": bed.metric_gradient}, hessian())
    mask = threshold_mask(found.of("arp"), request.param).remove.double()
    return request.param, mask, change(bed, bed.retrain(mask))


def change(bed: Bed, theta):
    return float(bed.metric(theta) - bed.metric(bed.theta))


def kept_loss(bed: Bed, face, rows, mask, **options):
    where = {"theta": bed.theta, "start": bed.start, "l2": L2, **options}
    data = where.pop("batches", None) or batches(bed)
    return KeptLoss(*face, data, rows=rows, mask=mask, **where)


def test_the_series_meets_its_bars(bed, face, rows, hessian, removal):
    """At most 2% at 5% removed and 6% at 20%, with derivatives at θ* alone."""
    share, mask, actual = removal
    kept, solve = kept_loss(bed, face, rows, mask), hessian()
    first = removal_update(bed.theta, rows, mask, solve)
    errors = [
        abs(change(bed, series_update(first, kept, solve, order).theta) / actual - 1)
        for order in (1, 2, 3)
    ]
    assert errors[0] > 0.1  # one step: what the series mends
    assert errors[1] < errors[0] / 3
    assert errors[2] <= {0.05: 0.02, 0.2: 0.06}[share]
    assert torch.equal(bed.engine.theta(), bed.theta)
    with pytest.raises(UsageError, match="order 0"):
        series_update(first, kept, solve, 0)


def test_newton_meets_its_bars(bed, face, rows, hessian, removal):
    """At most 1% at 5% removed and 2% at 20%, in two steps."""
    share, mask, actual = removal
    kept, solve = kept_loss(bed, face, rows, mask), hessian()
    start = series_update(removal_update(bed.theta, rows, mask, solve), kept, solve, 3)
    weights = 1 - mask
    found = newton_update(start, kept, lambda _: hessian(weights), 2)
    assert abs(change(bed, found.theta) / actual - 1) <= {0.05: 0.01, 0.2: 0.02}[share]
    steps = found.details["newton"]
    assert len(steps) == 2
    assert steps[1]["gradient"] < steps[0]["gradient"]
    assert steps[1]["value"] < steps[0]["value"]
    assert torch.equal(bed.engine.theta(), bed.theta)


def test_newton_from_one_step_reaches_retraining_s_optimum(bed, face, rows, hessian, removal):
    _, mask, actual = removal
    kept, weights = kept_loss(bed, face, rows, mask), 1 - mask
    first = removal_update(bed.theta, rows, mask, hessian())
    found = newton_update(first, kept, lambda _: hessian(weights), 7)
    assert abs(change(bed, found.theta) / actual - 1) < 1e-4


def test_the_kept_curvature_is_closer_where_it_is_definite(bed, face, rows, removal):
    """The GGN's; the exact Hessian's of what is kept, at θ*, is indefinite here, and says so."""
    _, mask, actual = removal
    errors = []
    for weights in (None, 1 - mask):
        solve = make_solver(GGN(*face, batches(bed), weights), L2, **OPTIONS)
        theta = removal_update(bed.theta, rows, mask, solve).theta
        errors.append(abs(change(bed, theta) / actual - 1))
    assert errors[1] < errors[0] / 2
    exact = make_solver(Hessian(*face, batches(bed), 1 - mask), L2, **OPTIONS)
    update = removal_update(bed.theta, rows, mask, exact)
    assert update.solution.negative_curvature
    assert any("Negative curvature" in warning for warning in update.warnings)


def test_kept_loss_is_the_loss_without_the_samples(bed, face, rows, removal):
    _, mask, _ = removal
    theta = bed.theta + 0.05 * torch.randn(
        rows.d, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )

    def plain(t):
        return bed.objective(t, 1 - mask)

    kept = kept_loss(bed, face, rows, mask)
    value, gradient = kept.value_and_gradient(theta)
    at_start, _ = kept.value_and_gradient(bed.theta)
    # θ* is an optimum here: nothing is held.
    assert torch.allclose(gradient, grad(plain)(theta), atol=1e-8)
    assert math.isclose(value - at_start, float(plain(theta) - plain(bed.theta)), rel_tol=1e-6)


def test_a_slope_is_held_or_descended(bed, face, rows, hessian, removal):
    """At a point that is no optimum: held, nothing moves without a removal; descended, all does."""
    nothing = torch.zeros(N, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    early = bed.theta + 0.003 * torch.randn(rows.d, generator=generator, dtype=torch.float64)
    slope = grad(bed.objective)(early, 1 - nothing)
    bed.engine.load(early)
    try:
        g = bed.engine.sample_grads(face[1], face[2], bed.recommender.collate(bed.train))
        there = MemoryRows(g)
        options = {"theta": early}
        held = kept_loss(bed, face, there, nothing, **options)
        descended = kept_loss(bed, face, there, nothing, descend=True, **options)
        assert torch.allclose(held.slope, slope, atol=1e-10)
        assert held.value_and_gradient(early)[1].norm() < 1e-10
        assert torch.allclose(descended.value_and_gradient(early)[1], slope, atol=1e-10)
        solve = hessian()
        still = removal_update(early, there, nothing, solve)
        assert float(still.delta.norm()) == 0
        back = removal_update(early, there, nothing, solve, slope=slope)
        back = series_update(back, descended, solve, 3)
        assert (back.theta - bed.theta).norm() < 0.05 * (early - bed.theta).norm()
    finally:
        bed.engine.load(bed.theta)


def test_a_sampled_gradient_is_exact_at_the_start(bed, face, rows, hessian, removal):
    """A third of the samples: no noise at θ*, and little a step away."""
    _, mask, _ = removal
    index = torch.randperm(N, generator=torch.Generator().manual_seed(2))[: N // 3].sort().values
    part = kept_loss(bed, face, rows, mask, batches=batches(bed, index), index=index)
    whole = kept_loss(bed, face, rows, mask)
    here, there = (kept.value_and_gradient(bed.theta)[1] for kept in (part, whole))
    assert torch.allclose(here, there, atol=1e-12)
    # A step away: the change since θ* is sampled, which is far less noisy than the gradient itself.
    theta = removal_update(bed.theta, rows, mask, hessian()).theta
    exact = whole.value_and_gradient(theta)[1]
    chosen = (1 - mask[index]) / len(index)
    at_start = bed.matrix[index].T @ chosen - bed.matrix.T @ (1 - mask) / N
    raw = part.value_and_gradient(theta)[1] + at_start
    assert (part.value_and_gradient(theta)[1] - exact).norm() < 0.5 * (raw - exact).norm()


def test_newton_stops_where_there_is_no_way_down(bed, face, rows, hessian, removal):
    _, mask, _ = removal
    kept = kept_loss(bed, face, rows, mask)
    first = removal_update(bed.theta, rows, mask, hessian())

    def uphill(rhs):
        solution = hessian()(rhs)
        return type(solution)(-solution.x, *list(vars(solution).values())[1:])

    found = newton_update(first, kept, lambda _: uphill, 3)
    assert torch.equal(found.theta, first.theta)
    assert found.details["newton"][0]["alpha"] == 0
    assert any("no way down" in warning for warning in found.warnings)
