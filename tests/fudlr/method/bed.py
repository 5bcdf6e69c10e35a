"""The near-exact test bed: a small LoRA model trained to its optimum in float64, and the truth.

d = 96 parameters, so that Hessian, solve and retraining can be had exactly, by means that share
nothing with the method: dense matrices from `torch.func` and Newton's method to |∇L| ≤ 5e-9 on
L(θ) = (1/n) Σ w_i ℓ_i(θ) + (λ/2)‖θ − θ₀‖². Popularity is planted: half of the items are chosen
more often than the base model knows, which the adapter learns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from fudlr.recommenders import Recommender
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, vmap

from fudlr_ext import Engine

N, N_VALID, M, WIDTH, HIDDEN, RANK = 1200, 120, 12, 4, 4, 4
L2 = 0.1
SMALL = 5e-9


class Net(nn.Module):
    """Scores over the catalogue from a user's features."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, HIDDEN)
        self.second = nn.Linear(HIDDEN, M)
        with torch.no_grad():
            self.first.weight[0] = 0  # a hidden unit that is always on, to hang popularity on
            self.first.bias[0] = 1.5

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


@dataclass(frozen=True)
class Users:
    """Samples of the bed: features [n, WIDTH] and the next item [n]."""

    x: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def take(self, index) -> Users:
        index = torch.as_tensor(index, dtype=torch.long)
        return Users(self.x[index], self.target[index])


class BedRecommender(Recommender):
    """The protocol's four steps; scores are not the outputs themselves, but twice as much."""

    name = "bed"

    def __init__(self, model):
        self.model, self.n_items, self.window = model, M, WIDTH
        self._probed = False

    def collate(self, samples, scoring=False):
        return {"x": samples.x, "target": samples.target}

    def forward(self, model, batch):
        return model(batch["x"])

    def loss(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["target"], reduction="none")

    def item_scores(self, outputs, batch):
        return 2 * outputs

    def _probe(self):
        return iter(())  # a row here is a vector: nothing is packed that could go wrong


@dataclass(frozen=True)
class Side:
    """What the bed's metric knows: log(1 + popularity) of each item."""

    value: Tensor


class Popularity:
    """The expected log-popularity of a recommendation, as ARP's surrogate has it."""

    name = "arp"

    def surrogate(self, scores: Tensor, side: Side) -> Tensor:
        return (scores.softmax(dim=1) @ side.value.to(scores.dtype)).mean()


class Bed:
    """Data, model, optimum θ*, and everything exact about it."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["first", "second"])
            self.model = get_peft_model(Net(), config).double().eval()
        self.recommender = BedRecommender(self.model)
        self.engine = Engine(self.model)
        # A larger A keeps the problem close to convex, so that one Newton step means something.
        self.engine.load(3 * self.engine.theta())
        popular = (torch.arange(M) < M // 2).double()
        taste = 0.1 * normal(WIDTH, M)

        def users(n: int) -> Users:
            x = normal(n, WIDTH)
            with torch.no_grad():
                chance = (self.model(x) + x @ taste + popular).softmax(dim=1)
            return Users(x, torch.multinomial(chance, 1, generator=generator)[:, 0])

        self.train, self.valid = users(N), users(N_VALID)
        counts = torch.bincount(self.train.target, minlength=M).double()
        self.side = Side(counts.log1p())
        self.start = self.engine.theta()
        self.theta = self.minimise(torch.ones(N, dtype=torch.float64), self.start)
        self.engine.load(self.theta)

    # What the model computes, as functions of the flat parameters.

    def outputs(self, theta: Tensor, x: Tensor) -> Tensor:
        state = {
            name.replace(".weight", ".default.weight"): matrix
            for name, matrix in self.engine.unflatten(theta).items()
        }
        return functional_call(self.model, state, (x,))

    def losses(self, theta: Tensor, users: Users) -> Tensor:
        outputs = self.outputs(theta, users.x)
        return nn.functional.cross_entropy(outputs, users.target, reduction="none")

    def objective(self, theta: Tensor, weights: Tensor) -> Tensor:
        """L(θ) with weights [n]; the divisor is n whatever they are."""
        pull = (theta - self.start).square().sum() * L2 / 2
        return (weights * self.losses(theta, self.train)).sum() / N + pull

    def metric(self, theta: Tensor) -> Tensor:
        """The unfairness on the validation users."""
        return Popularity().surrogate(2 * self.outputs(theta, self.valid.x), self.side)

    def validation_loss(self, theta: Tensor) -> Tensor:
        return self.losses(theta, self.valid).mean()

    # The truth.

    @cached_property
    def matrix(self) -> Tensor:
        """G [n, d]: one differentiation a sample."""

        def one(theta: Tensor, x: Tensor, target: Tensor) -> Tensor:
            return self.losses(theta, Users(x[None], target[None]))[0]

        return vmap(grad(one), in_dims=(None, 0, 0))(self.theta, self.train.x, self.train.target)

    @cached_property
    def hessian(self) -> Tensor:
        """∇²(1/n) Σ ℓ_i at θ* [d, d], without λ."""
        weights = torch.ones(N, dtype=torch.float64)
        whole = hessian(self.objective)(self.theta, weights)
        return whole - L2 * torch.eye(len(self.theta), dtype=torch.float64)

    @cached_property
    def metric_gradient(self) -> Tensor:
        return grad(self.metric)(self.theta)

    @cached_property
    def loss_gradient(self) -> Tensor:
        return grad(self.validation_loss)(self.theta)

    def retrain(self, mask: Tensor, start: Tensor | None = None) -> Tensor:
        """The optimum without the masked samples, and with nothing else changed."""
        return self.minimise(1 - mask.double(), self.theta if start is None else start)

    def minimise(self, weights: Tensor, start: Tensor) -> Tensor:
        """L-BFGS to the neighbourhood, then Newton's method, its Hessian kept while it serves."""
        theta = start.clone().requires_grad_()
        solver = torch.optim.LBFGS(
            [theta], max_iter=2000, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            solver.zero_grad()
            value = self.objective(theta, weights)
            value.backward()
            return value

        solver.step(closure)
        theta = theta.detach()
        slope, factor = grad(self.objective)(theta, weights), None
        for _ in range(50):
            if slope.norm() <= SMALL:
                return theta
            if factor is None:
                factor = torch.linalg.cholesky(hessian(self.objective)(theta, weights))
            theta = theta - torch.cholesky_solve(slope[:, None], factor)[:, 0]
            before, slope = slope.norm(), grad(self.objective)(theta, weights)
            if slope.norm() > before / 2:
                factor = None
        raise AssertionError(f"no optimum: |∇L| = {slope.norm():.2g}")


@lru_cache(maxsize=2)
def bed(seed: int = 0) -> Bed:
    """One bed a process, since training it takes some seconds; tests leave it as it is."""
    return Bed(seed)
