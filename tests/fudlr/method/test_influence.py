"""Metric gradients through the engine, influence and update: values, shapes and refusals."""

import math

import pytest
import torch
from bed import L2, N, Popularity
from fudlr.common.errors import DataError, NumericalError, UsageError
from fudlr.gradients import MemoryRows
from fudlr.gradients.metric import VALIDATION_LOSS, metric_gradients
from fudlr.influence.curvature import EmpiricalFisher, Parts
from fudlr.influence.scores import influence
from fudlr.influence.solvers import Status, make_solver
from fudlr.influence.update import removal_update


class Gap:
    """A metric that couples all prompts: the variance of the items' mean probability."""

    name = "gap"

    def surrogate(self, scores, side):
        return scores.softmax(dim=1).mean(dim=0).var()


@pytest.fixture(scope="module")
def rows(bed):
    return MemoryRows(bed.matrix)


@pytest.fixture(scope="module")
def solve(rows):
    return make_solver(EmpiricalFisher(Parts(rows)), L2, max_steps=300, tolerance=1e-12)


def gradients_of(bed, metrics, **options):
    face = (bed.recommender, bed.engine, bed.valid, bed.side)
    return metric_gradients(*face, metrics, batch_size=50, **options)


def test_metric_gradients_go_through_scores_and_loss(bed):
    found = gradients_of(bed, [Popularity(), Gap()])
    truth = {
        "arp": bed.metric,
        "gap": lambda t: Gap().surrogate(2 * bed.outputs(t, bed.valid.x), bed.side),
        VALIDATION_LOSS: bed.validation_loss,
    }
    assert list(found) == list(truth)
    for name, function in truth.items():
        expected = torch.func.grad(function)(bed.theta)
        # Scores are handed on in float32.
        assert math.isclose(found[name].value, float(function(bed.theta)), rel_tol=1e-5), name
        error = (found[name].gradient - expected).norm() / expected.norm()
        assert error < 1e-5, name


def test_one_pass_however_many_metrics_and_batches(bed):
    alone = gradients_of(bed, [Gap()], validation_loss=False)
    together = gradients_of(bed, [Popularity(), Gap()])
    assert list(alone) == ["gap"]
    assert torch.allclose(alone["gap"].gradient, together["gap"].gradient, atol=1e-12)


def test_metrics_that_cannot_be_differentiated(bed):
    def metric(name, function):
        return type(name, (), {"name": name, "surrogate": lambda self, s, side: function(s)})()

    for broken in (
        metric("counts", lambda s: (s > 0).double().mean()),
        metric("rows", lambda s: s.mean(dim=1)),
        metric("nan", lambda s: (s - s).sum().log() - math.inf),
    ):
        with pytest.raises(NumericalError, match=broken.name):
            gradients_of(bed, [broken])
    # Finite itself, with an infinite slope: √0.
    with pytest.raises(NumericalError, match="root"):
        gradients_of(bed, [metric("root", lambda s: (s - s.detach()).square().sum().sqrt())])
    with pytest.raises(UsageError, match="twice"):
        gradients_of(bed, [Gap(), Gap()])
    with pytest.raises(UsageError, match="none"):
        gradients_of(bed, [], validation_loss=False)
    with pytest.raises(DataError, match="no prompts"):
        metric_gradients(bed.recommender, bed.engine, bed.valid.take([]), bed.side, [Gap()])


def test_influence_is_the_formula(bed, rows, solve):
    h = bed.matrix.T @ bed.matrix / N + L2 * torch.eye(rows.d, dtype=torch.float64)
    expected = bed.matrix @ torch.linalg.solve(h, bed.metric_gradient) / N
    found = influence(rows, {"loss": bed.loss_gradient, "arp": bed.metric_gradient}, solve)
    assert found.names == ("loss", "arp")
    assert found.values.shape == (N, 2)
    assert torch.allclose(found.of("arp"), expected, rtol=1e-8, atol=1e-12)
    assert found.warnings == []


def test_candidates_have_the_influence_that_they_have_among_all(bed, rows, solve):
    index = torch.arange(0, N, 7)
    some = MemoryRows(bed.matrix[index])
    gradients = {"arp": bed.metric_gradient}
    whole = influence(rows, gradients, solve).values
    assert torch.allclose(influence(some, gradients, solve, n=N).values, whole[index])
    mask, part = torch.zeros(N), torch.ones(len(index))
    mask[index] = 1
    one = removal_update(bed.theta, rows, mask, solve)
    other = removal_update(bed.theta, some, part, solve, n=N)
    assert torch.allclose(one.theta, other.theta, rtol=1e-9)


def test_update_is_the_formula_and_first_order_the_influence(bed, rows, solve):
    mask = torch.zeros(N, dtype=torch.bool)
    mask[::10] = True
    update = removal_update(bed.theta, rows, mask, solve)
    h = bed.matrix.T @ bed.matrix / N + L2 * torch.eye(rows.d, dtype=torch.float64)
    delta = torch.linalg.solve(h, bed.matrix[mask].sum(dim=0)) / N
    assert torch.allclose(update.delta, delta, rtol=1e-8, atol=1e-12)
    assert torch.equal(update.theta, bed.theta + update.delta)
    assert update.warnings == []
    values = influence(rows, {"arp": bed.metric_gradient}, solve).of("arp")
    assert math.isclose(float(delta @ bed.metric_gradient), float(values[mask].sum()), rel_tol=1e-8)
    none = removal_update(bed.theta, rows, torch.zeros(N), solve)
    assert torch.equal(none.theta, bed.theta)


def test_parts_of_the_users_add_up_to_the_gradient(bed):
    face = (bed.recommender, bed.engine, bed.valid, bed.side, [Popularity()])
    whole = metric_gradients(*face, batch_size=50)
    parted = metric_gradients(*face, batch_size=10, parts=[15] * 8)
    assert whole.parts is None
    assert parted.parts.shape == (8, 2, bed.theta.numel())
    for total, name in zip(parted.parts.sum(0), whole, strict=True):
        assert torch.allclose(total, whole[name].gradient, atol=1e-14)
    first = bed.valid.take(range(15))  # a mean over 120, of which these are an eighth
    alone = metric_gradients(*face[:2], first, *face[3:]).popitem()[1].gradient
    assert torch.allclose(parted.parts[0, -1], alone / 8, atol=1e-14)


def test_negative_curvature_reaches_the_warnings(bed, rows):
    class Saddle:
        def product(self, vectors):
            return -vectors

    solve = make_solver(Saddle(), 0.1)
    found = influence(rows, {"arp": bed.metric_gradient}, solve)
    assert "Negative curvature" in found.warnings[0]
    update = removal_update(bed.theta, rows, torch.ones(N), solve)
    assert "Negative curvature" in update.warnings[0]


def test_an_unfinished_solve_is_said_where_it_matters(bed, rows):
    solve = make_solver(EmpiricalFisher(Parts(rows)), 1e-9, max_steps=1)
    mask = torch.zeros(N)
    mask[0] = 1
    update = removal_update(bed.theta, rows, mask, solve)
    assert update.solution.status is Status.MAX_STEPS
    assert update.solution.message in update.warnings


def test_bad_input(bed, rows, solve):
    good = {"arp": bed.metric_gradient}
    broken = bed.metric_gradient.clone()
    broken[3] = torch.nan
    with pytest.raises(NumericalError, match="right-hand side 1 of 2 has NaN"):
        influence(rows, {**good, "hellinger": broken}, solve)
    with pytest.raises(DataError, match="d = "):
        influence(rows, {"arp": bed.metric_gradient[:-1]}, solve)
    mask = torch.zeros(N)
    for wrong in (mask - 1, mask + 1.5, mask + torch.nan):
        with pytest.raises(DataError, match="between 0 and 1"):
            removal_update(bed.theta, rows, wrong, solve)
    with pytest.raises(DataError, match="n = "):
        removal_update(bed.theta, rows, mask[:-1], solve)
    with pytest.raises(NumericalError, match="not finite"):
        removal_update(bed.theta * torch.inf, rows, mask, solve)
