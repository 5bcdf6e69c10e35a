"""Direct fine-tuning: a few Adam steps on the metric and w times the validation loss.

    minimise F(θ) / |F(θ*)| + w · L_valid(θ) / L_valid(θ*)

The gradient is exact over all validation prompts; the grid is stated here and small: w, the
learning rate, and the number of steps, `STEPS` along the way.
"""

import torch

from fudlr.compare.base import Point, Rival, Setting, Stopwatch, loaded
from fudlr.gradients import VALIDATION_LOSS, metric_gradients

WEIGHTS = (1.0, 4.0)
RATES = (1e-3, 3e-3)
STEPS = (2, 4, 6, 8)


def _points(setting: Setting) -> list[Point]:
    found = []
    for weight in WEIGHTS:
        for rate in RATES:
            found += _path(setting, weight, rate)
    return found


def _path(setting: Setting, weight: float, rate: float) -> list[Point]:
    run, watch = setting.run, Stopwatch()
    theta = run.theta.clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=rate)
    coefficients, loss = None, 1.0
    found = []
    for step in range(1, max(STEPS) + 1):
        with loaded(setting, theta.detach()):
            gradients = metric_gradients(
                run.recommender,
                run.engine,
                setting.valid.samples,
                setting.valid.side,
                [term.metric for term in setting.objective.terms],
                batch_size=setting.config.batch,
            )
        if coefficients is None:  # at θ*
            start = torch.tensor([gradients[name].value for name in setting.objective.names])
            coefficients = setting.objective.coefficients(start)
            loss = gradients[VALIDATION_LOSS].value
        total = weight / loss * gradients[VALIDATION_LOSS].gradient
        for name, coefficient in zip(setting.objective.names, coefficients, strict=True):
            total = total + coefficient.to(total) * gradients[name].gradient
        theta.grad = total
        optimiser.step()
        if step in STEPS:
            name = f"w = {weight:g}, rate {rate:g}, {step} steps"
            found.append(Point(name, theta.detach().clone(), cost=watch.read()))
    return found


RIVAL = Rival(
    "direct fine-tuning",
    "Adam steps on the metric and the validation loss; no training sample is named",
    _points,
    uses_users=True,
)
