"""Larger steps: θ* + t δ along the removal's shift δ, t from 1 on.

The objective is measured anew at each t, on the prompts that steer; t grows while it falls and the
validation loss rises by no more than `max_loss_rise`, and the adapter is shifted by no more than
training's whole way. A step beyond 1 is no removal: past the optimum without the samples it leaves
what any training would give.
"""

from fudlr.debias.steering.base import Steered, Steering

LENGTHS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def line_search(steering: Steering) -> Steered:
    """The best of `LENGTHS` that the loss allows."""
    removal, config = steering.removal, steering.job.config
    delta, theta = removal.update.delta, steering.job.run.theta
    furthest = float((theta - steering.job.run.start).norm() / delta.norm())
    tried: list[dict[str, float]] = []
    for length in LENGTHS:
        if tried and length > furthest:
            break
        objective, rise = steering.judge(theta + length * delta)
        if tried and (rise > config.max_loss_rise or objective > tried[-1]["objective"]):
            break
        tried.append({"length": length, "objective": objective, "loss_rise": rise})
    length = tried[-1]["length"]
    return Steered(
        length * delta,
        removal.mask,
        {"length": length, "tried": tried},
        removal.update.solution,
    )
