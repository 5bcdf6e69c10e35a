"""Adam's step, the rows' answer to a shift, and their derivatives, where all is known exactly."""

import pytest
import torch
from fudlr.common.errors import DataError, ModelError
from fudlr.influence.unroll import Replay, Steps, StepWriter
from fudlr.influence.unroll.adam import AdamStep, Moments
from fudlr.influence.unroll.response import Response, Terms, pairs
from fudlr.pipeline.unrolled import UnrolledRows

SHAPES = {"q.lora_A.w": (2, 6), "q.lora_B.w": (5, 2), "v.lora_A.w": (2, 4), "v.lora_B.w": (3, 2)}
D = sum(a * b for a, b in SHAPES.values())
N, BATCH, EPOCHS, L2 = 12, 4, 3, 0.02
RATES = [0.005, 0.004, 0.003] * EPOCHS


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Task:
    """ℓ_i = c_i(z), z = ⟨G_i, B A − B₀ A₀⟩: every layer's G_i is fixed, the slope c' is not.

    The curvature in W is Fisher's exactly at z = 0: c = ½ (z + 1)², whose c' = c'' = 1; or, with
    labels y = ±1, c = log(1 + exp(−y z)), with c'² = c'' = ¼, and nearly so around it.
    """

    def __init__(self, theta=None, *, labels=None, size=1.0):
        self.layers = pairs(SHAPES)
        self.theta = normal(0, D) if theta is None else theta
        self.full, self.labels = [], labels
        for at, pair in enumerate(self.layers):
            a, b = pair.of(self.theta)
            left, right = normal(10 + at, N, len(b), len(a)), normal(20 + at, N, *a.shape)
            self.full.append(size * (left @ a + b @ right))  # what two views of it tell all of

    def losses(self, theta):
        z = torch.zeros(N).double()
        for full, pair in zip(self.full, self.layers, strict=True):
            (a, b), (a0, b0) = pair.of(theta), pair.of(self.theta)
            z = z + torch.einsum("nij,ij->n", full, b @ a - b0 @ a0)
        if self.labels is None:
            return (z + 1).square() / 2
        return torch.nn.functional.softplus(-self.labels * z)

    def rows(self, theta):
        return torch.autograd.functional.jacobian(self.losses, theta)


def within(task, theta, seed):
    """A shift whose A lies in A's row space, where ⟨G, b a⟩ is known exactly."""
    shift = 0.1 * normal(seed, D)
    for pair in task.layers:
        a = pair.of(theta)[0]
        pair.of(shift)[0].copy_(0.1 * normal(seed + 1, 2, 2) @ a)
    return shift


def once(rows):
    """The batch alone, every loss of one term."""
    return [Terms(rows, torch.ones(len(rows)))]


def test_a_batch_answers_exactly_where_fisher_is_the_curvature():
    task = Task()
    response, rows = Response(task.layers, task.theta), task.rows(task.theta)
    for seed in range(3):
        shift = within(task, task.theta, 30 + seed)
        for share in (1.0, 0.5):
            weights = torch.full((N,), share).double()
            mean = torch.autograd.functional.jacobian(
                lambda theta: task.losses(theta).mean(), task.theta + shift
            )
            found = response.gradient(rows, weights, shift, once(rows))
            assert torch.allclose(found, share * mean, rtol=1e-9, atol=1e-12)


def test_a_removal_takes_its_rows_and_its_part_of_the_curvature():
    task = Task()
    response, rows = Response(task.layers, task.theta), task.rows(task.theta)
    weights = torch.ones(N).double()
    weights[[1, 5, 6]] = 0
    still = response.gradient(rows, weights, torch.zeros(D).double(), once(rows))
    assert torch.allclose(still, weights @ rows / N)
    shift = 1e-6 * normal(3, D)
    fisher = (rows.T @ (rows @ shift)) * weights.mean() / N
    views = response.curvature(still, shift[None], once(rows))[0] - rows.T @ (rows @ shift) / N
    change = response.gradient(rows, weights, shift, once(rows)) - still
    assert float((change - fisher - views).norm() / change.norm()) < 1e-4


def test_the_curvature_is_the_answers_derivative_and_symmetric():
    task = Task()
    response, rows = Response(task.layers, task.theta), task.rows(task.theta)
    ones, vectors = torch.ones(N).double(), normal(4, 3, D)
    found = response.curvature(rows.mean(0), vectors, once(rows))
    step = 1e-6
    for vector, product in zip(vectors, found, strict=True):
        ahead = response.gradient(rows, ones, step * vector, once(rows))
        behind = response.gradient(rows, ones, -step * vector, once(rows))
        assert torch.allclose((ahead - behind) / (2 * step), product, rtol=1e-6, atol=1e-8)
    gram = vectors @ found.T
    assert torch.allclose(gram, gram.T, rtol=1e-10)
    hessian = torch.autograd.functional.hessian(lambda t: task.losses(t).mean(), task.theta)
    inside = within(task, task.theta, 5)
    assert torch.allclose(
        response.curvature(rows.mean(0), inside[None], once(rows))[0], hessian @ inside, rtol=1e-8
    )


def test_the_mean_of_terms_has_the_curvature_of_each():
    """T tokens' losses one by one, and their mean as a sample with T: the same expectation.

    With independent signs for the tokens' slopes, all of them averaged over.
    """
    task = Task(labels=torch.ones(N))
    rows, shift = task.rows(task.theta), 1e-3 * normal(3, D)
    response = Response(task.layers, task.theta)
    alone = response.curvature(torch.zeros(D).double(), shift[None], once(rows))
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
    pairs_of = rows.reshape(N // 2, 2, D)
    means = [(sign[:, None] * pairs_of).mean(1) for sign in signs]
    near = [Terms(mean, torch.full((len(mean),), 2.0)) for mean in means]
    together = response.curvature(torch.zeros(D).double(), shift[None], near)
    assert torch.allclose(together, alone, rtol=1e-9, atol=1e-15)


def test_at_b_zero_a_moves_with_b_alone():
    """The start of every LoRA training: the smallest Ĝ has no view through B."""
    theta = normal(0, D)
    for pair in pairs(SHAPES):
        pair.of(theta)[1].zero_()
    task = Task(theta)
    response, rows = Response(task.layers, theta), task.rows(theta)
    shift = within(task, theta, 7)
    exact = torch.autograd.functional.jacobian(lambda t: task.losses(t).mean(), theta + shift)
    found = response.gradient(rows, torch.ones(N).double(), shift, once(rows))
    for pair in task.layers:
        assert float(pair.of(found)[0].norm()) > 0
        assert torch.allclose(pair.of(found)[0], pair.of(exact)[0], rtol=1e-9)


def test_shapes_without_pairs_are_refused():
    with pytest.raises(ModelError, match=r"q\.lora_B\.w"):
        pairs({"q.lora_B.w": (5, 2), "q.lora_A.w": (2, 6)})


def adam_steps(gradients):
    moments, theta = Moments.zeros(gradients[0]), torch.zeros(D).double()
    for t, gradient in enumerate(gradients, start=1):
        moments, moved = AdamStep(t, RATES[t - 1], gradient).move(moments)
        theta = theta + moved
    return theta


def test_steps_are_torchs_adam():
    gradients = normal(8, 5, D)
    parameter = torch.nn.Parameter(torch.zeros(D).double())
    optimiser = torch.optim.Adam([parameter])
    for gradient, rate in zip(gradients, RATES, strict=False):
        optimiser.param_groups[0]["lr"] = rate
        parameter.grad = gradient.clone()
        optimiser.step()
    assert torch.allclose(adam_steps(gradients), parameter.detach(), rtol=1e-12)


def test_a_steps_derivative_and_its_transpose():
    before = Moments(normal(1, D), normal(2, D).square())
    step, change = AdamStep(3, 0.1, normal(3, D)), normal(4, 2, D)
    wobble = Moments(normal(5, 2, D), before.square * normal(6, 2, D).sin())
    after, moved = step.move(before)
    moments, found = step.tangent(wobble, change, after)
    size = 1e-6
    for k in range(2):
        other = AdamStep(3, 0.1, step.gradient + size * change[k])
        start = Moments(
            before.mean + size * wobble.mean[k], before.square + size * wobble.square[k]
        )
        _, moved_there = other.move(start)
        assert torch.allclose((moved_there - moved) / size, found[k], rtol=1e-3, atol=1e-7)
    pull, later = normal(7, 2, D), Moments(normal(8, 2, D), normal(9, 2, D))
    hangs, earlier = step.transposed(later, pull, after)
    ahead = (moments.mean * later.mean + moments.square * later.square + found * pull).sum()
    back = (change * hangs + wobble.mean * earlier.mean + wobble.square * earlier.square).sum()
    assert float(ahead) == pytest.approx(float(back), rel=1e-12)


def test_an_entry_without_any_gradient_stays():
    step = AdamStep(1, 0.1, torch.zeros(2).double())
    zero = Moments.zeros(step.gradient)
    after, moved = step.move(zero)
    assert not moved.any()
    _, found = step.tangent(Moments.zeros(torch.zeros(1, 2)), torch.zeros(1, 2), after)
    assert bool(found.isfinite().all())


@pytest.fixture
def trained(tmp_path):
    """A training of the task, its batches kept: θ₀, θ* and the folder."""
    task = Task(labels=normal(51, N).sign(), size=0.2)
    start = task.theta + 0.02 * normal(50, D)

    def train(weights, keep=None):
        theta, moments = start, Moments.zeros(start)
        for t, rate in enumerate(RATES, start=1):
            index = torch.arange(N)[(t - 1) % 3 :: 3]
            rows = task.rows(theta)[index]
            if keep is not None:
                keep.write(t, index, rows, rows.mean(0))
            slope = weights[index] @ rows / BATCH + L2 * (theta - start)
            moments, moved = AdamStep(t, rate, slope).move(moments)
            theta = theta + moved
        return theta

    class DoubleWriter(StepWriter):
        def __init__(self, folder):
            super().__init__(folder)
            self._dtype = torch.float64

    theta = train(torch.ones(N).double(), DoubleWriter(tmp_path))
    return train, start, theta, tmp_path


def replay_of(trained, **options):
    _, start, theta, folder = trained
    given = {"rates": RATES, "l2": L2, "samples": N, "start": start, "theta": theta, **options}
    return Replay(Steps(folder, len(RATES)), SHAPES, **given)


def test_nobody_removed_is_nothing_done(trained):
    replay = replay_of(trained)
    assert torch.allclose(replay.update(torch.zeros(N)), trained[2], rtol=1e-9)


def test_a_removal_ends_near_the_training_without_it(trained):
    """Not by the last gradients alone: by every batch, and in Adam's steps."""
    train, _, theta, _ = trained
    replay = replay_of(trained)
    for removed in ([2], [0, 7], [1, 4, 10]):
        mask = torch.zeros(N).double()
        mask[removed] = 1
        truth, found = train(1 - mask) - theta, replay.update(mask) - theta
        assert float(torch.cosine_similarity(found, truth, dim=0)) > 0.999
        assert 0.95 < float(found @ truth / found.square().sum()) < 1.05
        small = (train(1 - 1e-5 * mask) - theta) / 1e-5
        (first,) = replay.tangent(mask[None])
        assert float(torch.cosine_similarity(first, small, dim=0)) > 0.999


def test_first_order_is_that_of_the_replay(trained):
    """The same recursion but for the product b a and Adam's bends: equal for a small mask."""
    replay, masks = replay_of(trained), normal(60, 2, N).abs()
    found, size = replay.tangent(masks), 1e-7
    for mask, tangent in zip(masks, found, strict=True):
        ahead = (replay.update(size * mask) - replay.update(-size * mask)) / (2 * size)
        assert torch.allclose(ahead, tangent, rtol=1e-4, atol=1e-6)


def test_influence_is_the_transpose(trained):
    replay, masks, vectors = replay_of(trained), normal(61, 3, N), normal(62, 2, D)
    influence = replay.influence(vectors)
    assert torch.allclose(masks @ influence, replay.tangent(masks) @ vectors.T, rtol=1e-9)
    rows = UnrolledRows(replay)
    assert (rows.n, rows.d) == (N, D)
    assert torch.allclose(rows.dots(vectors) / N, influence)
    assert torch.allclose(rows.sum(masks) / N, replay.tangent(masks))
    weights = normal(63, N).abs()
    product = rows.gram_product(vectors, weights)
    assert torch.allclose(product, rows.sum((rows.dots(vectors) * weights[:, None]).T) / N)


def test_means_of_terms_take_batches_on_both_sides(trained):
    """The derivative holds for them too; and T = 1 is the replay without terms."""
    plain, ones = replay_of(trained), replay_of(trained, terms=torch.ones(N))
    mask, size = normal(64, N).abs(), 1e-7
    assert torch.equal(plain.update(mask.clamp(max=1)), ones.update(mask.clamp(max=1)))
    replay = replay_of(trained, terms=torch.full((N,), 2.5))
    (tangent,) = replay.tangent(mask[None])
    ahead = (replay.update(size * mask) - replay.update(-size * mask)) / (2 * size)
    assert torch.allclose(ahead, tangent, rtol=1e-4, atol=1e-6)
    vectors = normal(65, 2, D)
    assert torch.allclose(mask @ replay.influence(vectors), tangent @ vectors.T, rtol=1e-9)
    assert float((tangent - plain.tangent(mask[None])[0]).norm()) > 1e-3 * float(tangent.norm())
    windows = {
        1.0: [[t] for t in range(1, 10)],
        2.0: [[1, 2, 3, 4]] * 3 + [[t - 2, t - 1, t, t + 1] for t in range(4, 9)] + [[6, 7, 8, 9]],
        99.0: [list(range(1, 10))] * 9,
    }
    for terms, wanted in windows.items():
        of = replay_of(trained, terms=torch.full((N,), terms))
        read, real = [], of._steps.read
        of._steps.read = lambda t, read=read, real=real: read.append(t) or real(t)
        of.update(mask.clamp(max=1))
        size = len(wanted[0])
        found = [sorted(read[size * i : size * (i + 1)]) for i in range(len(RATES))]
        assert found == wanted


def test_the_last_epochs_slope(trained):
    steps = Steps(trained[3], len(RATES))
    expected = sum(steps.slope(t) for t in (7, 8, 9)) / 3
    assert torch.allclose(replay_of(trained).slope(), expected)


def test_batches_of_another_training_are_refused(trained):
    with pytest.raises(DataError, match="whole way"):
        replay_of(trained, theta=trained[2] + 0.01)
    with pytest.raises(DataError, match="whole way"):
        replay_of(trained, l2=0.5)


def test_missing_and_damaged_batches_are_named(trained):
    folder = trained[3]
    path = folder / "step-00004.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="step-00004"):
        replay_of(trained)
    path.unlink()
    with pytest.raises(DataError, match="batch 4 the first"):
        Steps(folder, len(RATES))


def test_rounded_rows_still_end_at_the_adapter(trained, tmp_path):
    _, start, theta, folder = trained
    writer = StepWriter(tmp_path / "rounded", "bfloat16")
    for t, step in enumerate(Steps(folder, len(RATES)), start=1):
        writer.write(t, step.samples, step.rows, step.slope.float())
    steps = Steps(tmp_path / "rounded", len(RATES))
    assert steps.read(1).rows.dtype == torch.bfloat16
    given = {"rates": RATES, "l2": L2, "samples": N}
    wide = Replay(steps, SHAPES, **given, start=start, theta=theta)
    assert wide.influence(normal(1, 1, D)).dtype == torch.float64
    replay = Replay(steps, SHAPES, **given, start=start.float(), theta=theta.float())
    assert torch.allclose(replay.update(torch.zeros(N)), theta.float(), rtol=1e-4, atol=1e-5)
    mask = torch.zeros(N)
    mask[[1, 4]] = 1
    exact = replay_of(trained).update(mask.double()) - theta
    found = replay.update(mask).double() - theta
    assert float((found - exact).norm() / exact.norm()) < 0.03
