"""Direct steps on the metric: Adam on F(θ)/|F(θ*)| + w · L_valid(θ)/L_valid(θ*) from θ*.

No training sample takes part: what it gives is no model that any choice of samples would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fudlr.debias.steering.base import Steered, Steering
from fudlr.gradients.metric import VALIDATION_LOSS, MetricGradient

RATE = 1e-3
"""Adam's learning rate."""

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


def direct(steering: Steering) -> Steered:
    """`steering_steps` of them, w being λ_acc, as long as the loss stays within `max_loss_rise`."""
    job, config = steering.job, steering.job.config
    factors = dict(zip(job.objective.names, steering.coefficients.tolist(), strict=True))
    steps = metric_steps(
        job.run.theta, steering.gradients_at, lambda _: factors, config.lambda_acc, RATE
    )
    theta, path = job.run.theta, []
    for _ in range(config.steering_steps):
        trial = next(steps)
        objective, rise = steering.judge(trial)
        if rise > config.max_loss_rise:
            break
        theta = trial
        path.append({"objective": objective, "loss_rise": rise})
    about = {"path": path, "rate": RATE}
    return Steered(theta - job.run.theta, steering.removal.mask, about)
