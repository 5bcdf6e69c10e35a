"""Direct fine-tuning: a few Adam steps on the metric and w times the validation loss.

    minimise F(θ) / |F(θ*)| + w · L_valid(θ) / L_valid(θ*)

The gradient is exact over all validation prompts; the grid is stated here and small: w, the
learning rate, and the number of steps, `STEPS` along the way.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fudlr.compare.base import Point, Rival, Setting, Stopwatch, loaded
from fudlr.gradients.metric import VALIDATION_LOSS, MetricGradient, metric_gradients

WEIGHTS = (1.0, 4.0)
RATES = (1e-3, 3e-3)
STEPS = (2, 4, 6, 8)
GradientsAt = Callable[[Tensor], Mapping[str, MetricGradient]]


def metric_steps(
    theta: Tensor,
    gradients_at: GradientsAt,
    coefficients: Callable[[Mapping[str, MetricGradient]], Mapping[str, float]],
    weight: float,
    rate: float,
) -> Iterator[Tensor]:
    """θ [d] after each step, without end.

    Args:
        theta: θ*.
        gradients_at: Gradients of the metrics, and of the validation loss, at θ.
        coefficients: From the gradients at θ* to each metric's factor.
        weight: w.
        rate: Adam's learning rate.
    """
    moving = theta.clone().requires_grad_()
    optimiser = torch.optim.Adam([moving], lr=rate)
    factors: dict[str, float] = {}
    while True:
        gradients = gradients_at(moving.detach())
        if not factors:  # at θ*
            factors = dict(coefficients(gradients))
            if weight > 0:
                factors[VALIDATION_LOSS] = weight / gradients[VALIDATION_LOSS].value
        moving.grad = torch.stack(
            [factor * gradients[name].gradient for name, factor in factors.items()]
        ).sum(0)
        optimiser.step()
        yield moving.detach().clone()


def _points(setting: Setting) -> list[Point]:
    found = []
    for weight in WEIGHTS:
        for rate in RATES:
            found += _path(setting, weight, rate)
    return found


def _path(setting: Setting, weight: float, rate: float) -> list[Point]:
    run, watch = setting.run, Stopwatch()

    def gradients_at(theta: Tensor) -> Mapping[str, MetricGradient]:
        with loaded(setting, theta):
            return metric_gradients(
                run.recommender,
                run.engine,
                setting.valid.samples,
                setting.valid.side,
                [term.metric for term in setting.objective.terms],
                batch_size=setting.config.batch,
            )

    def coefficients(gradients: Mapping[str, MetricGradient]) -> Mapping[str, float]:
        names = setting.objective.names
        start = torch.tensor([gradients[name].value for name in names])
        return dict(zip(names, setting.objective.coefficients(start).tolist(), strict=True))

    found = []
    steps = metric_steps(run.theta, gradients_at, coefficients, weight, rate)
    for step, theta in zip(range(1, max(STEPS) + 1), steps, strict=False):
        if step in STEPS:
            name = f"w = {weight:g}, rate {rate:g}, {step} steps"
            found.append(Point(name, theta, cost=watch.read()))
    return found


RIVAL = Rival(
    "direct fine-tuning",
    "Adam steps on the metric and the validation loss; no training sample is named",
    _points,
    uses_users=True,
)
