"""The unrolled update where all is known exactly, in float64: a step of the optimiser, the rows'
answer to a shift, their derivatives, and a training repeated literally by PyTorch."""

from dataclasses import replace

import pytest
import torch
from fudlr.common.errors import DataError
from fudlr.gradients import PrincipalAccumulator
from fudlr.gradients.store import Recipe
from fudlr.gradients.store.shards import Step
from fudlr.influence.unroll import Unrolled, UnrolledRows
from fudlr.influence.unroll.adam import OptimiserStep, State
from fudlr.influence.unroll.response import Response, group_layers

SHAPES = {
    "e.trainable_tokens_delta": (2, 3), "q.lora_A.w": (2, 6), "q.lora_B.w": (5, 2),
    "q.lora_B.b": (5, 1), "v.lora_embedding_A": (2, 4), "v.lora_embedding_B": (3, 2),
}  # fmt: skip
D = sum(a * b for a, b in SHAPES.values())
N, BATCH, EPOCHS = 12, 4, 3
RATES = torch.tensor([0.005, 0.004, 0.003] * EPOCHS, dtype=torch.float64)
RECIPES = {
    "adam, l2": Recipe(l2=0.02),
    "adam, decay": Recipe(weight_decay=0.05),
    "adamw": Recipe("AdamW", (0.8, 0.99), 1e-6, weight_decay=0.5),
    "clipped": Recipe("AdamW", l2=0.02, clip=0.15),
}


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Task:
    """ℓ_i = c_i(z), z = ⟨G_i, B A − B₀ A₀⟩: every layer's G_i is fixed, the slope c' is not; and
    ⟨G_i, T − T₀⟩ of what is in no pair.

    The curvature in W is Fisher's exactly at z = 0: c = ½ (z + 1)², whose c' = c'' = 1; or, with
    labels y = ±1, c = log(1 + exp(−y z)), with c'² = c'' = ¼, and nearly so around it.
    """

    def __init__(self, theta=None, *, labels=None, size=1.0):
        self.layers = group_layers(SHAPES)
        self.theta = normal(0, D) if theta is None else theta
        self.full, self.labels = [], labels
        for at, (a, b) in enumerate(self.matrices(self.theta)):
            left, right = normal(10 + at, N, len(b), len(a)), normal(20 + at, N, *a.shape)
            self.full.append(size * (left @ a + b @ right))  # what two views of it tell all of
        self.alone = torch.ones(D, dtype=torch.bool)
        for layer in self.layers:
            self.alone[layer.index_a] = self.alone[layer.index_b] = False
        self.rest = size * normal(30, N, int(self.alone.sum()))

    def matrices(self, theta):
        return [(a[0], b[0]) for a, b in (layer.of(theta) for layer in self.layers)]

    def losses(self, theta):
        z = self.rest @ (theta - self.theta)[self.alone]
        parts = zip(self.full, self.matrices(theta), self.matrices(self.theta), strict=True)
        for full, (a, b), (a0, b0) in parts:
            z = z + torch.einsum("nij,ij->n", full, b @ a - b0 @ a0)
        if self.labels is None:
            return (z + 1).square() / 2
        return torch.nn.functional.softplus(-self.labels * z)

    def rows(self, theta):
        return torch.autograd.functional.jacobian(self.losses, theta)


def torch_steps(recipe, start, gradient_of, rates=RATES):
    """What PyTorch makes of a training whose data give `gradient_of(t, θ)`."""
    parameter = torch.nn.Parameter(start.clone())
    kind = getattr(torch.optim, recipe.optimiser)
    options = {"betas": recipe.betas, "eps": recipe.eps, "weight_decay": recipe.weight_decay}
    optimiser = kind([parameter], **options)
    for t, rate in enumerate(rates.tolist()):
        optimiser.param_groups[0]["lr"] = rate
        theta = parameter.detach().clone()
        parameter.grad = gradient_of(t, theta) + recipe.l2 * (theta - start)
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_([parameter], recipe.clip)
        optimiser.step()
    return parameter.detach()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_steps_are_pytorchs(recipe):
    gradients, start = normal(8, len(RATES), D), normal(9, D)
    state = State.at(start)
    for t, gradient in enumerate(gradients):
        state = OptimiserStep(recipe, t + 1, float(RATES[t]), start).move(state, gradient)
    expected = torch_steps(recipe, start, lambda t, _: gradients[t])
    assert torch.allclose(state.theta, expected, rtol=1e-10)
    off = replace(recipe, l2=recipe.l2 + 0.01)
    assert not torch.allclose(torch_steps(off, start, lambda t, _: gradients[t]), expected)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_steps_derivative_and_its_transpose(recipe):
    before = State(normal(0, D), normal(1, D), normal(2, D).square())
    step, gradient = OptimiserStep(recipe, 3, 0.1, normal(10, D)), normal(3, D)
    change = normal(4, 2, D)
    wobble = State(normal(11, 2, D), normal(5, 2, D), before.square * normal(6, 2, D).sin())
    after = step.move(before, gradient)
    linear = step.linear(before, gradient, after)
    found, size = linear.tangent(wobble, change), 1e-6
    for k in range(2):
        there = State(*(b + size * w[k] for b, w in zip(before, wobble, strict=True)))
        moved = step.move(there, gradient + size * change[k])
        for new, old, tangent in zip(moved, after, found, strict=True):
            assert torch.allclose((new - old) / size, tangent[k], rtol=1e-3, atol=1e-5)
    later = State(normal(7, 2, D), normal(8, 2, D), normal(9, 2, D))
    hangs, earlier = linear.transposed(later)
    ahead = sum((a * b).sum() for a, b in zip(found, later, strict=True))
    back = (change * hangs).sum()
    back += sum((a * b).sum() for a, b in zip(wobble, earlier, strict=True))
    assert float(ahead) == pytest.approx(float(back), rel=1e-11)


class Memory:
    """A training in memory, float64."""

    def __init__(self, steps, projection=None):
        self._steps, self._projection = steps, projection
        self.read = []

    kept = False
    count = property(lambda self: len(self._steps))

    def mean(self, step):
        return self._steps[step].mean

    def step(self, step):
        self.read.append(step)
        return self._steps[step]

    def projection(self, segment):
        return self._projection


class Trained:
    """A training of the task by PyTorch, its steps kept."""

    def __init__(self, recipe=RECIPES["adam, l2"], shares=None):
        self.recipe, self.task = recipe, Task(labels=normal(51, N).sign(), size=0.2)
        self.start = self.task.theta + 0.02 * normal(50, D)
        self.shares = torch.full((N,), 1 / BATCH).double() if shares is None else shares
        self.steps = []
        self.theta = self.train(torch.ones(N).double(), keep=True)

    def train(self, weights, *, keep=False):
        def gradient(t, theta):
            index = torch.arange(N)[t % 3 :: 3]
            rows, shares = self.task.rows(theta)[index], self.shares[index]
            if keep:
                step = Step(index, rows, None, shares, shares @ rows, float(RATES[t]), t // 3 + 1)
                self.steps.append(step)
            return (weights[index] * shares) @ rows

        return torch_steps(self.recipe, self.start, gradient)

    def unrolled(self, training=None, **options):
        given = {"recipe": self.recipe, "rates": RATES, "samples": N, "start": self.start}
        given |= {"theta": self.theta, **options}
        return Unrolled(training or Memory(self.steps), SHAPES, **given)

    def sketched(self, energy):
        accumulator = PrincipalAccumulator(SHAPES)
        accumulator.add_rows(torch.cat([step.rows for step in self.steps]))
        projection = accumulator.fit(energy)
        # Orthonormal to float64, as its formulas ask.
        projection.factors = {
            name: torch.linalg.qr(factor.double().T)[0].T
            for name, factor in projection.factors.items()
        }
        steps = [replace(step, rows=projection.project(step.rows)) for step in self.steps]
        return projection, steps


@pytest.fixture(params=RECIPES.values(), ids=list(RECIPES))
def trained(request):
    return Trained(request.param)


@pytest.fixture
def plain():
    return Trained()


def test_nobody_removed_is_nothing_done(trained):
    assert torch.allclose(trained.unrolled().update(torch.zeros(N)), trained.theta, rtol=1e-9)


@pytest.fixture
def infinitesimal(monkeypatch):
    """The first order is of changes smaller than any v."""
    monkeypatch.setattr("fudlr.influence.unroll.adam.SMALL", 0.0)


@pytest.mark.usefixtures("infinitesimal")
def test_a_removal_ends_near_the_training_without_it(trained):
    """Not by the last gradients alone: by every batch, and in the optimiser's steps; and a small
    weight changes what PyTorch's training with that weight does."""
    unrolled = trained.unrolled()
    for removed in ([2], [0, 7], [1, 4, 10]):
        mask = torch.zeros(N).double()
        mask[removed] = 1
        truth = trained.train(1 - mask) - trained.theta
        found = unrolled.update(mask) - trained.theta
        assert float(torch.cosine_similarity(found, truth, dim=0)) > 0.998
        assert 0.95 < float(found @ truth / found.square().sum()) < 1.05
        small = (trained.train(1 - 1e-5 * mask) - trained.theta) / 1e-5
        (first,) = unrolled.tangent(mask[None])
        assert float(torch.cosine_similarity(first, small, dim=0)) > 0.998
        assert 0.95 < float(first @ small / first.square().sum()) < 1.05


def test_masks_together_give_what_each_gives_alone(trained):
    masks = torch.zeros(3, N).double()
    masks[0, [0, 7]], masks[1, 2], masks[2, 2] = 1, 1, 0.5
    unrolled = trained.unrolled()
    together = unrolled.update(masks)
    for mask, found in zip(masks, together, strict=True):
        assert torch.allclose(found, unrolled.update(mask), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(together[1], together[2], rtol=1e-6)
    # Where no process holds them, something gives what a step needs of them.
    assert torch.equal(unrolled.update(lambda ids: masks[:, ids]), together)
    tangent = unrolled.tangent(masks)
    assert torch.equal(unrolled.tangent(lambda ids: masks[:, ids]), tangent)


def test_samples_count_by_their_shares():
    """As in a mean over tokens: u_i differs from sample to sample."""
    trained = Trained(shares=(0.5 + normal(70, N).abs()) / 6)
    mask = torch.zeros(N).double()
    mask[[3, 8]] = 1
    truth = trained.train(1 - mask) - trained.theta
    found = trained.unrolled().update(mask) - trained.theta
    assert float(torch.cosine_similarity(found, truth, dim=0)) > 0.998
    assert 0.95 < float(found @ truth / found.square().sum()) < 1.05


@pytest.mark.usefixtures("infinitesimal")
def test_first_order_is_that_of_the_update(trained):
    """The same recursion but for the product b a and the optimiser's bends."""
    unrolled, masks = trained.unrolled(), normal(60, 2, N).abs()
    found, size = unrolled.tangent(masks), 1e-7
    for mask, tangent in zip(masks, found, strict=True):
        ahead = (unrolled.update(size * mask) - unrolled.update(-size * mask)) / (2 * size)
        assert torch.allclose(ahead, tangent, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kept", [True, False], ids=["states kept", "states made again"])
def test_influence_is_the_transpose(trained, monkeypatch, kept):
    if not kept:
        monkeypatch.setattr("fudlr.influence.unroll.trajectory.STATE_BYTES", 0)
    unrolled, masks, vectors = trained.unrolled(), normal(61, 3, N), normal(62, 2, D)
    influence = unrolled.influence(vectors)
    assert torch.allclose(masks @ influence, unrolled.tangent(masks) @ vectors.T, rtol=1e-8)
    rows, weights = UnrolledRows(unrolled), normal(63, N).abs()
    assert (rows.n, rows.d) == (N, D)
    assert torch.allclose(rows.dots(vectors) / N, influence)
    assert torch.allclose(rows.sum(masks) / N, unrolled.tangent(masks))
    product = rows.gram_product(vectors, weights)
    assert torch.allclose(product, rows.sum((rows.dots(vectors) * weights[:, None]).T) / N)


def test_products_that_follow_from_earlier_ones_need_no_pass(trained, monkeypatch):
    unrolled, parts = trained.unrolled(), normal(64, 4, D)
    rows = UnrolledRows(unrolled)
    rows.dots(parts)
    taken = []
    influence = unrolled.influence
    monkeypatch.setattr(unrolled, "influence", lambda v: taken.append(len(v)) or influence(v))
    other = normal(65, 2, D)
    asked = torch.stack([parts.sum(0), other[0], 3 * parts[1] - other[0], torch.zeros(D), other[1]])
    assert torch.allclose(rows.dots(asked) / N, influence(asked))
    assert taken == [2]
    near = parts.sum(0)[None] + 1e-4 * normal(66, 1, D)  # almost a sum of those known
    assert torch.allclose(rows.dots(near) / N, influence(near))
    assert taken == [2, 1]


@pytest.mark.parametrize("terms", [1.0, 2.0])
def test_sketches_answer_as_their_lifted_rows_would(plain, terms):
    """Nothing but SᵀS g in place of g, with the exact means."""
    projection, steps = plain.sketched(0.7)
    lifted = [replace(step, rows=projection.lift(step.rows)) for step in steps]
    assert not torch.allclose(lifted[0].rows, plain.steps[0].rows, rtol=0.1)
    options = {"terms": torch.full((N,), terms)}
    sketched = plain.unrolled(Memory(steps, projection), **options)
    whole = plain.unrolled(Memory(lifted), **options)
    masks, vectors = normal(61, 2, N), normal(62, 2, D)
    assert torch.allclose(sketched.update(masks[0]), whole.update(masks[0]), rtol=1e-9)
    assert torch.allclose(sketched.tangent(masks), whole.tangent(masks), rtol=1e-8)
    assert torch.allclose(sketched.influence(vectors), whole.influence(vectors), rtol=1e-8)


def test_all_directions_are_whole_rows(plain):
    projection, steps = plain.sketched(1.0)
    found = plain.unrolled(Memory(steps, projection)).tangent(normal(61, 2, N))
    assert torch.allclose(found, plain.unrolled().tangent(normal(61, 2, N)), rtol=1e-8)


@pytest.mark.usefixtures("infinitesimal")
def test_means_of_terms_take_batches_on_both_sides(plain):
    """The derivative holds for them too; and T = 1 is the update without terms."""
    ones = plain.unrolled(terms=torch.ones(N))
    mask, size = normal(64, N).abs().clamp(max=1), 1e-7
    assert torch.equal(plain.unrolled().update(mask), ones.update(mask))
    unrolled = plain.unrolled(terms=torch.full((N,), 2.5))
    (tangent,) = unrolled.tangent(mask[None])
    ahead = (unrolled.update(size * mask) - unrolled.update(-size * mask)) / (2 * size)
    assert torch.allclose(ahead, tangent, rtol=1e-4, atol=1e-6)
    vectors = normal(65, 2, D)
    assert torch.allclose(mask @ unrolled.influence(vectors), tangent @ vectors.T, rtol=1e-8)
    assert float((tangent - ones.tangent(mask[None])[0]).norm()) > 1e-3 * float(tangent.norm())
    training = Memory(plain.steps)
    plain.unrolled(training, terms=torch.full((N,), 2.0)).update(mask)
    assert training.read == list(range(9))  # each step once, though four are in use at a time


def test_the_curvature_of_a_window_is_its_batches_mean(plain):
    """T = 2: four batches around each, T times their mean of g gᵀ; written out densely."""
    unrolled, vector = plain.unrolled(terms=torch.full((N,), 2.0)), normal(66, 1, D)
    order = unrolled._order
    list(unrolled._path._read(range(4)))
    found = unrolled._lifted(unrolled._sums(2, vector[:, order])[1], vector)
    rows = torch.cat([plain.steps[t].rows for t in range(4)])
    expected = (2 * vector @ rows.T @ rows / len(rows))[:, order]
    assert torch.allclose(found, expected, rtol=1e-10)


def test_stiffness_is_a_factor_of_fishers_products_alone(plain):
    """As T is where one batch is the curvature."""
    mask = normal(67, N).abs().clamp(max=1)
    softer = plain.unrolled(terms=torch.full((N,), 0.5)).update(mask)
    assert torch.allclose(plain.unrolled().update(mask, 0.5), softer, rtol=1e-12)
    assert not torch.allclose(plain.unrolled().update(mask), softer, rtol=1e-4)


@pytest.mark.parametrize("energy", [None, 0.7])
def test_the_curvature_along_shifts_is_the_last_epochs(plain, energy):
    """What whole rows see of a shift at θ*, cut to the sketch, and the mean of T (gᵀ u)²."""
    terms, shifts = 1 + torch.arange(N) / N, 0.1 * normal(68, 2, D)
    projection, steps = (None, plain.steps) if energy is None else plain.sketched(energy)
    training = Memory(steps) if energy is None else Memory(steps, projection)
    u, found = plain.unrolled(training, terms=terms).curvature(shifts)
    seen = Response(plain.task.layers, plain.theta).seen(shifts)
    if projection is not None:
        assert not torch.allclose(u, seen, rtol=0.05)
        seen = projection.lift(projection.project(seen))
    assert torch.allclose(u, seen, rtol=1e-9, atol=1e-12)
    last = plain.steps[-N // BATCH :]
    squares = sum(terms[s.ids].double() @ (s.rows @ seen.T).square() for s in last) / N
    assert torch.allclose(found, squares, rtol=1e-9)


def test_steps_of_another_training_are_refused(plain):
    with pytest.raises(DataError, match="whole way"):
        plain.unrolled(theta=plain.theta + 0.01)
    with pytest.raises(DataError, match="whole way"):
        plain.unrolled(recipe=Recipe(l2=0.5))
    with pytest.raises(DataError, match="whole way"):
        plain.unrolled(recipe=replace(plain.recipe, betas=(0.8, 0.999)))
    with pytest.raises(DataError, match="whole way"):
        plain.unrolled(rates=RATES.flip(0))


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 5, 6, 7, 8], [0, 1, 2, 3, 4, 4, 5, 6, 7, 8],
                                   [0, 1, 2, 4, 3, 5, 6, 7, 8]],
                         ids=["missing", "repeated", "reordered"])  # fmt: skip
def test_a_step_that_is_not_the_trainings_is_refused(trained, order):
    with pytest.raises(DataError, match="whole way"):
        trained.unrolled(Memory([trained.steps[t] for t in order]), rates=RATES[order])


def test_a_training_that_was_recorded_from_its_middle(plain):
    """From Adam's state there, the end is the same; samples count from there on."""
    state = State.at(plain.start)
    for t, step in enumerate(plain.steps[:3]):
        made = OptimiserStep(plain.recipe, t + 1, step.rate, plain.start)
        state = made.move(state, step.mean)
    recipe = replace(plain.recipe, l2=0.0)  # θ₀ is not known where a recording begins later
    whole = Trained(recipe)
    state = State.at(whole.start)
    for t, step in enumerate(whole.steps[:3]):
        state = OptimiserStep(recipe, t + 1, step.rate, whole.start).move(state, step.mean)
    later = {"moments": torch.stack([state.mean, state.square]), "before": 3, "rates": RATES[3:]}
    unrolled = whole.unrolled(Memory(whole.steps[3:]), start=state.theta, **later)
    assert torch.allclose(unrolled.update(torch.zeros(N)), whole.theta, rtol=1e-9)
    with pytest.raises(DataError, match="whole way"):
        whole.unrolled(Memory(whole.steps[3:]), start=state.theta, rates=RATES[3:])
