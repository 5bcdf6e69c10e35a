"""LLMEraser's iterative solve: the same Newton step, by stochastic gradient descent.

    x ← x − η ((H_batch + damping) x − b),   b = (1/n) Σ_forget g_i,   θ = θ* + x

after Ding, Wu, Yuan et al. 2025, "Unified parameter-efficient unlearning for LLMs" (arXiv
2412.00383): the inverse-Hessian product as the minimum of a finite sum of quadratics, one batch of
exact Hessian products a step. η is the inverse of the largest curvature seen by power iteration.
The forget set is the one that our mask names.
"""

import torch

from fudlr.compare.base import Point, Rival, Setting, Stopwatch, loaded

STEPS = (5, 15, 30)
POWER_STEPS = 5


def _points(setting: Setting) -> list[Point]:
    result, before = setting.ours()
    run, watch = setting.run, Stopwatch()
    damping = float(result.summary["solver"]["damping"])
    face = (run.recommender.forward, run.recommender.loss)
    generator = torch.Generator().manual_seed(setting.config.seed)
    found = []
    with loaded(setting, run.theta):

        def product(vector: torch.Tensor) -> torch.Tensor:
            drawn = torch.randint(setting.n, (setting.config.batch,), generator=generator)
            batch = run.recommender.collate(run.split.train.take(drawn.numpy()))
            return run.engine.hvp(*face, batch, vector[None])[0] + damping * vector

        right = torch.zeros_like(run.theta)
        forget = run.split.train.take(result.mask.nonzero().flatten().numpy())
        for batch in run.recommender.batches(forget, setting.config.batch):
            ones = torch.full((len(batch["target"]),), 1 / setting.n)
            right += run.engine.grad_sum(*face, batch, ones)
        direction = right / right.norm()
        largest = 1.0
        for _ in range(POWER_STEPS):
            image = product(direction)
            largest = float(image.norm())
            direction = image / image.norm()
        x = torch.zeros_like(right)
        for step in range(1, max(STEPS) + 1):
            x = x - (product(x) - right) / largest
            if step in STEPS:
                spent = watch.read(before)
                found.append(Point(f"{step} steps", run.theta + x, mask=result.mask, cost=spent))
    return found


RIVAL = Rival(
    "LLMEraser's solve",
    "the Newton step by stochastic descent on exact Hessian products; our mask",
    _points,
    uses_users=True,
    names_samples=True,
)
