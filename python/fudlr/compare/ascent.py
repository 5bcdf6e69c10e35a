"""Gradient ascent on the forget set: Adam steps up the mean loss of the samples to be forgotten.

The usual baseline of unlearning (Jang et al. 2023, "Knowledge unlearning for mitigating privacy
risks in language models"). The forget set is the one that our mask names.
"""

import torch

from fudlr.compare.base import Point, Rival, Setting, Stopwatch, loaded

RATE = 1e-3
STEPS = (1, 2, 4, 8)


def _points(setting: Setting) -> list[Point]:
    result, before = setting.ours()
    run, watch = setting.run, Stopwatch()
    forget = run.split.train.take(result.mask.nonzero().flatten().numpy())
    theta = run.theta.clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=RATE, maximize=True)
    found = []
    for step in range(1, max(STEPS) + 1):
        gradient = torch.zeros_like(run.theta)
        with loaded(setting, theta.detach()):
            for batch in run.recommender.batches(forget, setting.config.batch):
                ones = torch.full((len(batch["target"]),), 1 / len(forget))
                face = (run.recommender.forward, run.recommender.loss)
                gradient += run.engine.grad_sum(*face, batch, ones)
        theta.grad = gradient
        optimiser.step()
        if step in STEPS:
            spent = watch.read(before)
            found.append(
                Point(f"{step} steps", theta.detach().clone(), mask=result.mask, cost=spent)
            )
    return found


RIVAL = Rival(
    "gradient ascent",
    "Adam steps up the loss of the samples that our mask names",
    _points,
    uses_users=True,
    names_samples=True,
)
