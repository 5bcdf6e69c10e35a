"""Masks that follow the metric itself instead of its linearisation at θ*.

    minimise J(m) = λ_fair F(θ(m)) / std(s) + λ_acc A(θ(m)) / std(a) + λ_spa Σ |m_i|,
    θ(m) = θ* + (1/n) H⁻¹ Gᵀ m

over the masks that the budget allows, by Frank and Wolfe's method (1956): gradients at θ(m), the
vertex v of the allowed masks that they like best, m ← m + γ (v − m) with γ = 2/(k + 2). The first
step is the plain removal. Since θ(m) is an approximation, a minimum of J exploits its error: it
looks better than it retrains, and is steering.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fudlr.debias.steering.base import Steered, Steering
from fudlr.gradients.metric import VALIDATION_LOSS, MetricGradient
from fudlr.influence.scores import influence

Vertex = Callable[[Tensor, int], Tensor]
"""From the slope of J [n] and the budget's samples to the best allowed vertex [n]."""


def frank_wolfe(steering: Steering, vertex: Vertex) -> Steered:
    """`steering_steps` steps from the plain removal's end of the first."""
    job, config = steering.job, steering.job.config
    n, room = steering.evidence.space.total, int(config.budget * steering.evidence.space.total)
    scale: list[float] = []
    mask = torch.zeros(n, dtype=job.run.theta.dtype)
    gradients, path = steering.gradients, []
    solution = steering.removal.update.solution
    for step in range(config.steering_steps):
        slope = _slope(steering, gradients, scale)
        best = vertex(slope, room).to(mask)
        moved = 2 / (step + 2) * (best - mask)
        mask = mask + moved
        solution = steering.shift_of(mask)
        theta = job.run.theta + steering.lift(solution)
        objective, rise = steering.judge(theta)
        path.append(
            {
                "objective": objective,
                "loss_rise": rise,
                "moved": float(moved.abs().sum()) / max(room, 1),
            }
        )
        if step + 1 < config.steering_steps:
            gradients = steering.gradients_at(theta)
    about = {
        "path": path,
        "weighted_down": int((mask > 0).sum()),
        "weighted_up": int((mask < 0).sum()),
        "weight": float(mask.abs().sum()),
    }
    return Steered(steering.lift(solution), mask, about, solution)


def _slope(
    steering: Steering, gradients: Mapping[str, MetricGradient], scale: list[float]
) -> Tensor:
    """∂J/∂m [n] without λ_spa; `scale` keeps the first step's standard deviations."""
    job, space = steering.job, steering.evidence.space
    wanted = [*job.objective.names] + [VALIDATION_LOSS] * (job.config.lambda_acc > 0)
    projected = space.project(torch.stack([gradients[name].gradient for name in wanted]))
    values = influence(
        space.rows,
        dict(zip(wanted, projected, strict=True)),
        steering.evidence.solve,
        n=space.total,
    ).values
    terms = len(job.objective.names)
    parts = [values[:, :terms] @ steering.coefficients.to(values), values[:, terms:].sum(1)]
    if not scale:
        scale += [float(part.std(correction=0)) or 1.0 for part in parts]
    weights = (job.config.lambda_fair, job.config.lambda_acc)
    total = sum(w * part / s for w, part, s in zip(weights, parts, scale, strict=True))
    assert isinstance(total, Tensor)
    return space.spread(total, 0.0)
