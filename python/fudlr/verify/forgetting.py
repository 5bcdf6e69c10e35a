"""What returns: the updated adapter trained on with what was unlearned, and with what was kept.

If the update only hid the samples, a little training on anything brings the bias back, or training
on them brings it back faster than it comes to a model that never saw them. So the same is done to
the retrained adapter, which is the truth: both should gain alike. As many kept samples are drawn as
were forgotten, so that both trainings have as many steps.

    returned = (F(θ trained on) − F(θ)) / (F(θ*) − F(θ))
"""

from __future__ import annotations

from typing import Any

import torch

from fudlr.verify.case import Case
from fudlr.verify.retraining import Job, removal

EPOCHS = (1, 2)


def forgetting(case: Case) -> dict[str, Any] | None:
    """Figures and losses on the forgotten samples, before and after training on."""
    if not case.checks.forgetting:
        return None
    forgotten = case.mask.nonzero().flatten()
    kept = (case.mask == 0).nonzero().flatten()
    generator = torch.Generator().manual_seed(case.seed)
    drawn = kept[torch.randperm(len(kept), generator=generator)[: len(forgotten)]].sort().values
    (retrained,) = case.retrain([removal("without the removed samples", case.mask)], "retrain")
    starts = {"updated": case.theta, "retrained": retrained.theta}
    parts = {"forgotten": forgotten, "kept": drawn}
    plan = [(start, part, epochs) for start in starts for part in parts for epochs in EPOCHS]
    jobs = [
        Job(
            f"{start} adapter, {epochs} epochs on {part}",
            config=case.run.config.train.model_copy(update={"epochs": epochs}),
            start=starts[start],
            index=parts[part],
        )
        for start, part, epochs in plan
    ]
    done = case.retrain(jobs, "train on")
    state = {name: _state(case, theta, forgotten) for name, theta in starts.items()}
    state["trained"] = _state(case, case.run.theta, forgotten)
    trained_on = []
    for (start, part, epochs), result in zip(plan, done, strict=True):
        figures = _state(case, result.theta, forgotten)
        trained_on.append(
            {
                "start": start,
                "samples": part,
                "epochs": epochs,
                "figures": figures,
                "returned": returned(figures, state[start], state["trained"]),
            }
        )
    return {"samples": len(forgotten), "start": state, "trained_on": trained_on}


def returned(
    figures: dict[str, float], start: dict[str, float], trained: dict[str, float]
) -> dict[str, float]:
    """(F − F(start)) / (F(trained) − F(start)): 0 where nothing came back, 1 where all did."""
    return {
        name: (value - start[name]) / (trained[name] - start[name])
        for name, value in figures.items()
        if trained[name] != start[name]
    }


def _state(case: Case, theta: torch.Tensor, forgotten: torch.Tensor) -> dict[str, float]:
    figures = case.measure(theta).metrics
    samples = case.run.split.train.take(forgotten.numpy())
    losses = case.run.recommender.losses(samples, case.config.batch)
    return {**figures, "loss_of_forgotten": float(losses.mean())}
