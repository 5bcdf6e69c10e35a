"""A training that was stopped: where it had come to, so that it goes on from there bit for bit.

FOLDER/<key>.checkpoint.safetensors: the parameters [d], Adam's two moments [d] each, the state of
the random numbers, and the losses so far. The key is a digest of everything that the training hangs
on: a checkpoint of another training is never found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fudlr.common.errors import DataError
from fudlr.common.files import atomic_file

ENDING = ".checkpoint.safetensors"


@dataclass(frozen=True)
class State:
    """A training after `step` batches.

    Attributes:
        step: Batches that are done.
        theta: The parameters [d].
        moments: Adam's running means of gradients and of their squares, [2, d].
        random: State of torch's generator, uint8.
        totals: Sum of weighted losses of each epoch so far, float64.
    """

    step: int
    theta: Tensor
    moments: Tensor
    random: Tensor
    totals: Tensor


def digest(tensors: Sequence[Tensor | None], *texts: str) -> str:
    """A name for a training: of all that it hangs on, in order."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(
            b"|" if tensor is None else tensor.detach().contiguous().cpu().numpy().tobytes()
        )
    for text in texts:
        found.update(b"\0" + text.encode())
    return found.hexdigest()[:24]


@dataclass(frozen=True)
class Checkpoint:
    """Where a training keeps its state, and how often.

    Attributes:
        folder: Its folder.
        every: Batches from one checkpoint to the next.
        course: What is trained on what, as text: the base model, the data, the prompts.
    """

    folder: Path
    every: int
    course: str

    def path(self, key: str) -> Path:
        """The file of the training `key`."""
        return self.folder / f"{key}{ENDING}"

    def due(self, step: int) -> bool:
        """Whether the state is to be kept after `step` batches."""
        return step % self.every == 0

    def write(self, key: str, state: State) -> None:
        """Keep `state`, whole or not at all, in place of the earlier one."""
        tensors = {
            "theta": state.theta,
            "moments": state.moments,
            "random": state.random,
            "totals": state.totals,
        }
        with atomic_file(self.path(key)) as temporary:
            save_file(tensors, temporary, {"facts": json.dumps({"step": state.step})})

    def read(self, key: str) -> State | None:
        """The state that was kept; None where there is none.

        Raises:
            DataError: The file is damaged.
        """
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                step = int(json.loads(file.metadata()["facts"])["step"])
                return State(
                    step, *(file.get_tensor(n) for n in ("theta", "moments", "random", "totals"))
                )
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"the training was to go on from {path}",
                f"the file is damaged ({error})",
                "Delete it: the training begins anew",
            ) from error

    def clear(self, key: str) -> None:
        """Forget the state of a training that ended."""
        self.path(key).unlink(missing_ok=True)


def adam_moments(optimiser: torch.optim.Adam, parameters: Sequence[Tensor]) -> Tensor:
    """Adam's two running means [2, d] in the order of `parameters`."""
    names = ("exp_avg", "exp_avg_sq")
    return torch.stack(
        [torch.cat([optimiser.state[p][name].flatten() for p in parameters]) for name in names]
    )


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
