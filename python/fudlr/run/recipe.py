"""How an adapter from elsewhere was trained, as far as its own folder says.

A Trainer leaves `trainer_state.json` in `checkpoint-N`. Its `training_args.bin` is a pickle, which
nothing here reads: the optimiser and the order of batches stay unknown.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fudlr.common.reading import read_json
from fudlr.config import RunConfig, TrainConfig, merge

STATE = "trainer_state.json"


class _Logged(BaseModel):
    """One line of its log."""

    model_config = ConfigDict(extra="ignore")
    learning_rate: Annotated[float, Field(ge=0, lt=1e6)] = 0.0


class _State(BaseModel):
    """What of a Trainer's state is read."""

    model_config = ConfigDict(extra="ignore")
    num_train_epochs: Annotated[float, Field(gt=0, lt=1e6)]
    max_steps: Annotated[int, Field(ge=0, lt=2**40)]
    train_batch_size: Annotated[int | None, Field(ge=1, lt=2**30)] = None
    log_history: list[_Logged] = []


def known_recipe(folder: Path, n: int) -> dict[str, Any]:
    """`epochs`, `batch` and `learning_rate` of the training that left the adapter in `folder`.

    Args:
        folder: Of the adapter.
        n: Its training samples.

    Returns:
        Options of `train` by their names; empty where nothing is told.
    """
    if not (folder / STATE).is_file():
        return {}
    state = read_json(folder / STATE, _State)
    found: dict[str, Any] = {"epochs": max(1, round(state.num_train_epochs))}
    steps = state.max_steps / state.num_train_epochs
    if steps >= 1 and n:
        size = state.train_batch_size or 1
        found["batch"] = size * max(1, round(math.ceil(n / size) / steps))
    if (rate := max((each.learning_rate for each in state.log_history), default=0.0)) > 0:
        found["learning_rate"] = rate
    return found


def with_recipe(
    config: RunConfig, n: int, named: Collection[str]
) -> tuple[dict[str, Any] | None, RunConfig]:
    """What is known of the training of `lora.adapter`, and the options with it, but for those that
    were `named`; None where the adapter is to be trained here."""
    if config.lora.adapter is None:
        return None, config
    known = known_recipe(Path(config.lora.adapter), n)
    told = {f"train.{name}": value for name, value in known.items()}
    return known, merge(config, {name: told[name] for name in told.keys() - set(named)})


def differences(known: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """What retraining by `config` does otherwise than the adapter's own training, in words."""
    said = [
        f"{name.replace('_', ' ')} {getattr(config, name):g} where it had {value:g}"
        for name, value in known.items()
        if getattr(config, name) != value
    ]
    unknown = [name for name in ("epochs", "batch", "learning_rate") if name not in known]
    more = [", ".join(unknown).replace("_", " ")] if unknown else []
    return [*said, f"what is not known of it: {', '.join([*more, 'optimiser, schedule, order'])}"]
