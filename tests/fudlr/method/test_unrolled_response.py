"""How a batch's gradients answer to a shift, against derivatives, in float64; and projections of
vectors whose layers of one shape lie side by side."""

import pytest
import torch
from fudlr.gradients import PrincipalAccumulator
from fudlr.gradients.projection import Projection
from fudlr.influence.unroll.arranged import ArrangedProjection
from fudlr.influence.unroll.response import Response, arrange, group_layers
from test_unrolled import SHAPES, D, N, Task, normal


def answer(response, rows, weights, shift):
    """(1/n) Σ w_i g_i(θ + δ), as the module's docstring has it, with dense algebra."""
    fisher = rows.T @ (rows @ response.seen(shift[None])[0]) / len(rows)
    total = weights @ rows / len(rows) + weights.mean() * fisher
    return total + response.views(total, shift[None])[0]


def curvature(response, rows, vectors):
    return vectors @ rows.T @ rows / len(rows) + response.views(rows.mean(0), vectors)


def test_a_batch_answers_exactly_where_fisher_is_the_curvature():
    """The tasks' G_i are the smallest that have their views, so that b a is seen exactly."""
    task = Task()
    response, rows = Response(task.layers, task.theta), task.rows(task.theta)
    for seed in range(3):
        shift = 0.1 * normal(30 + seed, D)
        mean = torch.autograd.functional.jacobian(
            lambda theta: task.losses(theta).mean(), task.theta + shift
        )
        for share in (1.0, 0.5):
            weights = torch.full((N,), share).double()
            found = answer(response, rows, weights, shift)
            assert torch.allclose(found, share * mean, rtol=1e-9, atol=1e-12)


def test_the_curvature_is_the_answers_derivative_and_symmetric():
    task = Task()
    response, rows = Response(task.layers, task.theta), task.rows(task.theta)
    ones, vectors = torch.ones(N).double(), normal(4, 3, D)
    found = curvature(response, rows, vectors)
    step = 1e-6
    for vector, product in zip(vectors, found, strict=True):
        ahead = answer(response, rows, ones, step * vector)
        behind = answer(response, rows, ones, -step * vector)
        assert torch.allclose((ahead - behind) / (2 * step), product, rtol=1e-6, atol=1e-8)
    gram = vectors @ found.T
    assert torch.allclose(gram, gram.T, rtol=1e-10)
    hessian = torch.autograd.functional.hessian(lambda t: task.losses(t).mean(), task.theta)
    assert torch.allclose(found, vectors @ hessian, rtol=1e-8)


def test_at_b_zero_a_moves_with_b_alone():
    """The start of every LoRA training: the smallest Ĝ has no view through B."""
    theta = normal(0, D)
    for layer in group_layers(SHAPES):
        theta[layer.index_b] = 0
    task = Task(theta)
    response, rows = Response(task.layers, theta), task.rows(theta)
    shift = 0.1 * normal(7, D)
    exact = torch.autograd.functional.jacobian(lambda t: task.losses(t).mean(), theta + shift)
    found = answer(response, rows, torch.ones(N).double(), shift)
    for layer in task.layers:
        assert float(found[layer.index_a].norm()) > 0
        assert torch.allclose(found[layer.index_a], exact[layer.index_a], rtol=1e-9)


def test_layers_of_one_shape_are_taken_together():
    twice = {f"{name}{key}": shape for name in "ab" for key, shape in SHAPES.items()}
    groups, theta = group_layers(twice), torch.cat([normal(0, D), normal(1, D)])
    assert [group.a_shape[0] for group in groups] == [2, 2]
    shift = 0.1 * normal(2, 2 * D)
    found = Response(groups, theta).views(theta, shift[None])[0]
    alone = [
        Response(group_layers(SHAPES), theta[part]).views(theta[part], shift[part][None])[0]
        for part in (slice(0, D), slice(D, 2 * D))
    ]
    assert torch.allclose(found, torch.cat(alone), rtol=1e-12)


def test_what_is_in_no_pair_answers_by_fisher_alone():
    """As an adapter of trained tokens is, and nothing else."""
    shapes = {"e.trainable_tokens_delta": (2, 3), "q.lora_B.b": (5, 1)}
    layers, theta, shift = group_layers(shapes), normal(0, 11), normal(1, 11)
    order, arranged = arrange(layers, 11)
    assert (layers, arranged) == ([], [])
    assert torch.equal(order, torch.arange(11))
    response = Response(arranged, theta)
    assert torch.equal(response.seen(shift[None])[0], shift)
    assert not response.views(theta, shift[None]).any()


@pytest.mark.parametrize("missing", [(), ("q.lora_A.w",), ("q.lora_A.w", "v.lora_embedding_A")])
def test_an_arranged_projection_is_the_projection(missing):
    """A side whose gradients were all 0, as A's are at the start, has no directions at all."""
    full = torch.zeros(2, D).double()
    accumulator = PrincipalAccumulator(SHAPES)
    accumulator.add_rows(normal(5, 6, D).float())
    factors = accumulator.fit(energy=0.7).factors
    projection = Projection(SHAPES, {k: f for k, f in factors.items() if k not in missing})
    order, _ = arrange(group_layers(SHAPES), D)
    arranged = ArrangedProjection(projection, order.argsort(), torch.float64)
    vectors, sketches = normal(6, 2, D), normal(7, 2, projection.dim)
    torch.testing.assert_close(arranged.project(vectors[:, order]), projection.project(vectors))
    full[:, order] = arranged.lift(sketches)
    torch.testing.assert_close(full, projection.lift(sketches))
