"""The closed form against real retraining: signs, scales and agreement on the near-exact bed."""

import pytest
import torch
from bed import L2, SMALL, Bed, N
from fudlr.gradients import MemoryRows
from fudlr.influence.mask import threshold_mask
from fudlr.influence.scores import influence, scores
from fudlr.influence.solvers import make_solver
from fudlr.influence.update import removal_update
from torch.func import grad


class Dense:
    """A given symmetric matrix as a curvature."""

    def __init__(self, matrix):
        self.matrix = matrix

    def product(self, vectors):
        return vectors @ self.matrix


@pytest.fixture(scope="module")
def rows(bed: Bed):
    return MemoryRows(bed.matrix)


@pytest.fixture(scope="module")
def solve(bed: Bed):
    return make_solver(Dense(bed.hessian), L2, max_steps=500, tolerance=1e-12)


@pytest.fixture(scope="module")
def values(bed: Bed, rows, solve):
    gradients = {"arp": bed.metric_gradient, "val_loss": bed.loss_gradient}
    return influence(rows, gradients, solve)


@pytest.fixture(scope="module")
def removals(bed: Bed):
    """Random removals of 5%, really retrained: (mask, change of arp, change of the loss)."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(12):
        mask = torch.zeros(N, dtype=torch.float64)
        mask[torch.randperm(N, generator=generator)[: N // 20]] = 1
        theta = bed.retrain(mask)
        arp = float(bed.metric(theta) - bed.metric(bed.theta))
        loss = float(bed.validation_loss(theta) - bed.validation_loss(bed.theta))
        found.append((mask, arp, loss))
    return found


def targeted(values, share):
    return threshold_mask(values.of("arp"), share).remove.double()


def change(bed: Bed, theta):
    return float(bed.metric(theta) - bed.metric(bed.theta))


def spearman(a, b):
    ranks = torch.stack([torch.tensor(v).argsort().argsort().double() for v in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def slope(predicted, actual):
    """Of the line through the points, with an offset, since a loss's second order is one."""
    p, a = torch.tensor(predicted), torch.tensor(actual)
    return float(torch.cov(torch.stack([p, a]))[0, 1] / p.var())


def test_the_bed_is_at_its_optimum(bed: Bed):
    weights = torch.ones(N, dtype=torch.float64)
    assert grad(bed.objective)(bed.theta, weights).norm() <= SMALL
    lowest = torch.linalg.eigvalsh(bed.hessian)[0]
    assert lowest < 0  # indefinite without λ, as the exact Hessian is in practice
    assert lowest + L2 > 0


def test_influence_predicts_retraining_on_random_removals(bed, values, removals):
    # The validation loss is near its own minimum: its second order, of the size of a fifth of the
    # change, scatters around the line.
    for column, which, largest in (("arp", 1, 1.12), ("val_loss", 2, 1.2)):
        predicted = [float(values.of(column) @ mask) for mask, *_ in removals]
        actual = [removal[which] for removal in removals]
        # Sign and 1/n: either turned is a slope of −1 or of n. The kept samples' Hessian is 5%
        # smaller, so that a little more than 1 is right.
        assert 0.95 <= slope(predicted, actual) <= largest, column
        assert spearman(predicted, actual) >= 0.97, column
    arp = [float(values.of("arp") @ mask) for mask, *_ in removals]
    assert spearman(arp, [removal[1] for removal in removals]) >= 0.98


def test_update_agrees_with_retraining(bed, rows, solve, removals):
    closed = [change(bed, removal_update(bed.theta, rows, m, solve).theta) for m, *_ in removals]
    actual = [arp for _, arp, _ in removals]
    assert 0.97 <= slope(closed, actual) <= 1.12
    assert spearman(closed, actual) >= 0.98


@pytest.mark.parametrize("limits", [(0.01, 0.04), (0.05, 0.15), (0.1, 0.2)])
def test_targeted_removal_agrees_with_retraining(bed, rows, solve, values, limits):
    share, tolerance = limits
    mask = targeted(values, share)
    actual = change(bed, bed.retrain(mask))
    closed = change(bed, removal_update(bed.theta, rows, mask, solve).theta)
    assert actual < 0  # what was chosen to lower the metric lowers it
    assert abs(closed - actual) <= tolerance * abs(actual)
    assert abs(float(values.of("arp") @ mask) - actual) <= tolerance * abs(actual)


def test_leave_one_out(bed, rows, solve, values):
    order = values.of("arp").argsort()
    chosen = order[:: N // 12].tolist()
    predicted, actual = [], []
    for index in chosen:
        mask = torch.zeros(N, dtype=torch.float64)
        mask[index] = 1
        predicted.append(float(values.of("arp")[index]))
        actual.append(change(bed, bed.retrain(mask)))
    assert abs(slope(predicted, actual) - 1) <= 0.05
    assert spearman(predicted, actual) >= 0.98


def test_damping_is_the_loss_s_own_and_added_once(bed, rows, removals):
    """Half or double the λ that the loss has agrees worse with retraining, in the parameters."""
    theta = [bed.retrain(mask) for mask, *_ in removals[:4]]

    def error(damping):
        solve = make_solver(Dense(bed.hessian), damping, max_steps=500, tolerance=1e-12)
        shifts = [removal_update(bed.theta, rows, m, solve).theta for m, *_ in removals[:4]]
        pairs = zip(shifts, theta, strict=True)
        return float(sum((a - b).norm() / (b - bed.theta).norm() for a, b in pairs))

    right = error(L2)
    assert right < error(2 * L2)
    assert right < error(0.75 * L2)


def test_curvature_without_entries_between_layers_overshoots(bed, rows, values):
    """Each layer supplies the whole shift on its own: the docs' warning, seen on the bed."""
    blocks, start = torch.zeros_like(bed.hessian), 0
    fisher = bed.matrix.T @ bed.matrix / N
    for shape in bed.engine.shapes.values():
        part = slice(start, start + shape[0] * shape[1])
        blocks[part, part] = fisher[part, part]
        start = part.stop
    mask = targeted(values, 0.05)
    changes = [
        change(bed, removal_update(bed.theta, rows, mask, make_solver(Dense(h), L2)).theta)
        for h in (fisher, blocks)
    ]
    assert abs(changes[1]) > 1.2 * abs(changes[0])


def test_scored_mask_keeps_the_validation_loss(bed, values):
    """λ_acc pays: at equal numbers removed, the retrained loss is lower with it than without."""
    losses = []
    for lambda_acc in (0.0, 1.0):
        score = scores(values.of("arp"), values.of("val_loss"), 1.0, lambda_acc)
        mask = threshold_mask(score, 0.1).remove.double()
        theta = bed.retrain(mask)
        assert change(bed, theta) < 0
        losses.append(float(bed.validation_loss(theta)))
    assert losses[1] < losses[0]
