"""A training that was stopped: where it had come to, so that it goes on from there bit for bit.

FOLDER/<key>.checkpoint.safetensors: the parameters [d], Adam's two moments [d] each, the state of
the random numbers, and the losses so far. The key is a digest of everything that the training
depends on: a checkpoint of another training is never found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fudlr.common.device import random_state
from fudlr.common.kept import Kept, key_of
from fudlr.config import TrainConfig
from fudlr.data.interactions import Samples
from fudlr.gradients.store.manifest import adam_moments
from fudlr_ext import Engine

ENDING = ".checkpoint.safetensors"
TENSORS = ("theta", "moments", "random", "totals")


@dataclass(frozen=True)
class State:
    """A training after `step` batches.

    Attributes:
        step: Batches that are done.
        theta: The parameters [d].
        moments: Adam's running means of gradients and of their squares, [2, d].
        random: State of torch's generators, uint8.
        totals: Sum of weighted losses of each epoch so far, float64.
    """

    step: int
    theta: Tensor
    moments: Tensor
    random: Tensor
    totals: Tensor

    @classmethod
    def of(cls, step: int, engine: Engine, optimiser: torch.optim.Adam, totals: Tensor) -> Self:
        """That of a training now."""
        found = adam_moments(optimiser, engine.parameters())
        assert found is not None  # it took a step
        return cls(step, engine.theta().cpu(), found[0], random_state(engine.device), totals)


class Checkpoint:
    """Where a training keeps its state, and how often.

    Args:
        folder: Its folder.
        every: Batches from one checkpoint to the next.
        course: What is trained on what, as text: the base model, the data, the prompts.
    """

    def __init__(self, folder: Path, every: int, course: str) -> None:
        self._kept, self.every, self._course = Kept(folder, ENDING), every, course

    def key(
        self, samples: Samples, config: TrainConfig, start: Tensor, weights: Tensor | None
    ) -> str:
        """A name for the training of these samples, by these options, from `start` [d]."""
        tensors = {"start": start, "ids": torch.from_numpy(samples.ids)}
        tensors |= {} if weights is None else {"weights": weights}
        return key_of(tensors, config.model_dump(mode="json"), self._course)

    def write(self, key: str, state: State) -> None:
        """Keep `state`, whole or not at all, in place of the earlier one."""
        tensors = {name: getattr(state, name) for name in TENSORS}
        self._kept.write(key, tensors, {"step": state.step})

    def read(self, key: str) -> State | None:
        """The state that was kept; None where there is none.

        Raises:
            DataError: The file is damaged.
        """
        found = self._kept.read(key)
        if found is None:
            return None
        tensors, facts = found
        return State(int(facts["step"]), *(tensors[name] for name in TENSORS))

    def clear(self, key: str) -> None:
        """Forget the state of a training that ended."""
        self._kept.clear(key)


def load_moments(
    optimiser: torch.optim.Adam, parameters: Sequence[Tensor], moments: Tensor, step: int
) -> None:
    """Put `moments` [2, d] and the number of steps into a fresh optimiser."""
    sizes = [p.numel() for p in parameters]
    for p, mean, square in zip(parameters, *(m.split(sizes) for m in moments), strict=True):
        optimiser.state[p] = {
            "step": torch.tensor(float(step)),
            "exp_avg": mean.view_as(p).to(p).clone(),
            "exp_avg_sq": square.view_as(p).to(p).clone(),
        }
