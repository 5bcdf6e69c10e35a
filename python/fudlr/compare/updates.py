"""Rivals that move the adapter: ascent on the forget set, LLMEraser's solve, direct fine-tuning.

**Gradient ascent**: Adam steps up the mean loss of the samples to be forgotten, the usual baseline
of unlearning (Jang et al. 2023, "Knowledge unlearning for mitigating privacy risks in language
models"). The forget set is the one that our mask names.

**LLMEraser**: the same Newton step as ours, by stochastic gradient descent,

    x ← x − η ((H_batch + damping) x − b),   b = (1/n) Σ_forget g_i,   θ = θ* + x

after Ding, Wu, Yuan et al. 2025, "Unified parameter-efficient unlearning for LLMs" (arXiv
2412.00383): the inverse-Hessian product as the minimum of a finite sum of quadratics, one batch of
exact Hessian products a step. η is the inverse of the largest curvature seen by power iteration.

**Direct fine-tuning**: a few Adam steps on the metric and w times the validation loss,

    minimise F(θ) / |F(θ*)| + w · L_valid(θ) / L_valid(θ*)

The gradient is exact over all validation prompts; the grid is small: w, the learning rate, and the
number of steps.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fudlr.compare.base import Point, Rival, Setting, clock, loaded
from fudlr.gradients.metric import VALIDATION_LOSS, MetricGradient, metric_gradients

ASCENT_RATE = 1e-3
ASCENT_STEPS = (1, 2, 4, 8)
ERASER_STEPS = (5, 15, 30)
POWER_STEPS = 5
WEIGHTS = (1.0, 4.0)
RATES = (1e-3, 3e-3)
STEPS = (2, 4, 6, 8)


def _forget_gradient(setting: Setting, total: int | None = None) -> Tensor:
    """Σ_forget g_i / `total` at the adapter that the model holds, [d]; their mean where None."""
    found = torch.zeros_like(setting.run.theta)
    for batch, size in setting.forgotten():
        shares = torch.full((len(batch["target"]),), 1 / (total or size))
        found += setting.run.engine.grad_sum(*setting.face, batch, shares).cpu()
    return found


def _ascent(setting: Setting) -> list[Point]:
    _, cost = setting.ours()
    began, found = clock(), []
    theta = setting.run.theta.clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=ASCENT_RATE, maximize=True)
    for step in range(1, max(ASCENT_STEPS) + 1):
        with loaded(setting, theta.detach()):
            theta.grad = _forget_gradient(setting)
        optimiser.step()
        if step in ASCENT_STEPS:
            spent = clock().plus(began, -1).plus(cost)
            found.append(Point(f"{step} steps", theta.detach().clone(), cost=spent))
    return found


def _eraser(setting: Setting) -> list[Point]:
    result, cost = setting.ours()
    run, began, found = setting.run, clock(), []
    # Where our own update unrolls the training, it has no damping: λ is the loss's own.
    damping = float(result.summary["solver"]["damping"]) or run.config.train.l2
    generator = torch.Generator().manual_seed(setting.run.config.seed)

    def product(vector: Tensor) -> Tensor:
        drawn = torch.randint(setting.n, (setting.config.batch,), generator=generator)
        batch = run.recommender.batch(run.split.train.take(drawn.numpy()))
        return run.engine.hvp(*setting.face, batch, vector[None])[0].cpu() + damping * vector

    with loaded(setting, run.theta):
        right = _forget_gradient(setting, setting.n)
        direction, largest = right / right.norm(), 1.0
        for _ in range(POWER_STEPS):
            image = product(direction)
            largest = float(image.norm())
            direction = image / image.norm()
        x = torch.zeros_like(right)
        for step in range(1, max(ERASER_STEPS) + 1):
            x = x - (product(x) - right) / largest
            if step in ERASER_STEPS:
                spent = clock().plus(began, -1).plus(cost)
                found.append(Point(f"{step} steps", run.theta + x, cost=spent))
    return found


def _fine_tuning(setting: Setting) -> list[Point]:
    found = []
    for weight in WEIGHTS:
        for rate in RATES:
            began, steps = clock(), _metric_steps(setting, weight, rate)
            for step, theta in zip(range(1, max(STEPS) + 1), steps, strict=False):
                if step in STEPS:
                    name = f"w = {weight:g}, rate {rate:g}, {step} steps"
                    found.append(Point(name, theta, cost=clock().plus(began, -1)))
    return found


def _metric_steps(setting: Setting, weight: float, rate: float) -> Iterator[Tensor]:
    """θ [d] after each step, without end."""
    run, objective = setting.run, setting.objective
    moving = run.theta.clone().requires_grad_()
    optimiser = torch.optim.Adam([moving], lr=rate)
    factors: dict[str, float] = {}
    while True:
        with loaded(setting, moving.detach()):
            gradients: Mapping[str, MetricGradient] = metric_gradients(
                run.recommender,
                run.engine,
                run.valid.samples,
                run.valid.side,
                [term.metric for term in objective.terms],
                batch_size=setting.config.batch,
            )
        if not factors:  # at θ*
            start = torch.tensor([gradients[name].value for name in objective.names])
            coefficients = objective.coefficients(start).tolist()
            factors = dict(zip(objective.names, coefficients, strict=True))
            factors[VALIDATION_LOSS] = weight / gradients[VALIDATION_LOSS].value
        parts = [factor * gradients[name].gradient for name, factor in factors.items()]
        moving.grad = torch.stack(parts).sum(0)
        optimiser.step()
        yield moving.detach().clone()


ASCENT = Rival(
    "gradient ascent",
    "Adam steps up the loss of the samples that our mask names",
    _ascent,
    uses_users=True,
    names_samples=True,
)
ERASER = Rival(
    "LLMEraser's solve",
    "the Newton step by stochastic descent on exact Hessian products; our mask",
    _eraser,
    uses_users=True,
    names_samples=True,
)
FINE_TUNING = Rival(
    "direct fine-tuning",
    "Adam steps on the metric and the validation loss; no training sample is named",
    _fine_tuning,
    uses_users=True,
)
