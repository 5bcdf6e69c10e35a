"""Training of the adapter, and retraining without some samples, in the same order and scale.

L(θ) = (1/n) Σ w_i ℓ_i(θ) + (λ/2)‖θ − θ₀‖², by Adam. Retraining with mask m is the same call with
weights 1 − m: the same start, the same batches, the same divisor (each batch is divided by its
full size, never by the number kept), so that what differs is the removal alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fudlr import lora
from fudlr.common.batches import token_batches
from fudlr.common.errors import ModelError, NumericalError, UsageError
from fudlr.common.progress import track
from fudlr.config import TrainConfig
from fudlr.data.interactions import Samples
from fudlr.gradients.steps import StepWriter
from fudlr.recommenders import Recommender
from fudlr.train.adam import Adam
from fudlr.train.checkpoint import Checkpoint, State, adam_moments, digest, load_moments
from fudlr_ext import Engine
from fudlr_ext.reducers import Rows, Sums

ENGINE_TOKENS = 2048
"""Tokens that go through the engine at a time: more take memory, fewer merge weights more often."""


class Ride(Protocol):
    """What an observer wants to know of a batch beside its backward pass."""

    losses: Tensor | None
    """ℓ_i [b], detached; set before the backward pass."""


Observer = Callable[[int, np.ndarray], AbstractContextManager[Ride | None]]
"""Called with the epoch and the sample indices of each batch; entered around its backward pass."""


@dataclass(frozen=True)
class Training:
    """What a training left.

    Attributes:
        theta: The parameters [d].
        losses: The mean weighted loss of each epoch.
        adam: The optimiser's state at the end; None where nothing was trained here.
    """

    theta: Tensor
    losses: list[float]
    adam: Adam | None = None


def batch_order(n: int, config: TrainConfig) -> Iterator[tuple[int, Tensor]]:
    """(epoch, sample indices) of every batch, decided by the seed alone."""
    generator = torch.Generator().manual_seed(config.seed)
    for epoch in range(config.epochs):
        for index in torch.randperm(n, generator=generator).split(config.batch):
            yield epoch, index


def train_adapter(
    recommender: Recommender,
    engine: Engine,
    samples: Samples,
    config: TrainConfig,
    start: Tensor,
    *,
    weights: Tensor | None = None,
    observer: Observer | None = None,
    description: str = "train",
    checkpoint: Checkpoint | None = None,
    trajectory: StepWriter | None = None,
) -> Training:
    """Train the adapter from `start`; the model holds the trained parameters afterwards.

    With a `checkpoint`, a training that was stopped goes on from the last one and ends bit for bit
    where it would have. An epoch that an observer records is begun again as a whole: its rows are
    not in the checkpoint.

    Args:
        recommender: Gives batches, outputs and losses.
        engine: Orders the parameters.
        samples: The n training samples.
        config: Epochs, learning rate, schedule, batch, λ, seed.
        start: θ₀ [d], the initialisation and the centre of λ.
        weights: w [n], 1 where None; 0 removes a sample.
        observer: Rides on batches; see `Observer`.
        description: What the progress line says.
        checkpoint: Where the state is kept on the way; nowhere where None.
        trajectory: Keeps every batch's per-sample gradients; nothing does where None. Without
            `weights` and observer, and through the engine.

    Raises:
        NumericalError: The loss is not finite.
        ModelError: A LoRA matrix gets no gradient.
        UsageError: The engine was to train a model with dropout, or a trajectory cannot be kept.
        DataError: The checkpoint is damaged.
    """
    if config.through == "engine":
        _check_no_dropout(recommender.model, description)
    if trajectory is not None and (config.through != "engine" or observer or weights is not None):
        raise UsageError(
            f"every batch's gradients were to be kept ({description}, record.trajectory)",
            "only the engine has them, and it trains without an observer, on all samples alike",
            "Set train.through=engine and record.ride=false, or leave record.trajectory out",
        )
    engine.load(start)
    parameters = engine.parameters()
    centre = [p.detach().clone() for p in parameters]
    n = len(samples)
    steps = config.epochs * math.ceil(n / config.batch)
    keeper = _Keeper(checkpoint, samples, config, start, weights, trajectory=trajectory)
    kept = keeper.read()
    done = kept.step if kept else 0
    optimiser = torch.optim.Adam(
        [{"params": parameters, "initial_lr": config.learning_rate}], lr=config.learning_rate
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, _schedule(config, steps), done - 1)
    totals = torch.zeros(config.epochs, dtype=torch.float64)
    with (
        lora.training(engine, checkpointing=config.checkpointing),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(config.seed)  # of an adapter's dropout
        if kept is not None:
            engine.load(kept.theta)
            load_moments(optimiser, parameters, kept.moments, done)
            torch.set_rng_state(kept.random)
            totals += kept.totals
        order = islice(batch_order(n, config), done, None)
        for step, (epoch, index) in enumerate(
            track(order, steps, description, initial=done), start=done + 1
        ):
            part = samples.take(index.numpy())
            weighted = None if weights is None else weights[index]
            optimiser.zero_grad(set_to_none=True)
            with observer(epoch, index.numpy()) if observer else nullcontext() as ride:
                if config.through == "engine" and ride is None:
                    loss, rows = _through_engine(
                        recommender, engine, part, weighted, keep=trajectory is not None
                    )
                    if trajectory is not None:
                        trajectory.write(step, index, rows, _gradient(parameters))
                else:
                    loss = _through_peft(recommender, part, weighted, ride)
                if ride is not None:
                    keeper.stop()
            _check_reached(engine, parameters, description)
            _add_l2(parameters, centre, config.l2)
            optimiser.step()
            scheduler.step()
            totals[epoch] += loss / n
            if not math.isfinite(float(totals[epoch])):
                raise NumericalError(
                    f"{description} at epoch {epoch + 1} of {config.epochs}",
                    "the loss is not finite",
                    "Lower train.learning_rate, or look for NaN in the base model",
                )
            keeper.keep(step, engine, optimiser, totals)
    keeper.clear()
    return Training(engine.theta(), [float(t) for t in totals], _adam(optimiser, config, steps))


def _through_peft(
    recommender: Recommender, samples: Samples, weights: Tensor | None, ride: Ride | None
) -> float:
    """Give the parameters the gradient of (1/b) Σ w_i ℓ_i; returns Σ w_i ℓ_i."""
    batch = recommender.collate(samples)
    losses = recommender.loss(recommender.forward(recommender.model, batch), batch)
    if ride is not None:
        ride.losses = losses.detach()
    if weights is not None:
        losses = losses * weights.to(losses)
    (losses.sum() / len(samples)).backward()
    return float(losses.detach().sum())


def _through_engine(
    recommender: Recommender,
    engine: Engine,
    samples: Samples,
    weights: Tensor | None,
    *,
    keep: bool,
) -> tuple[float, Tensor]:
    """The same from the engine, samples of like length together; none of weight 0 is computed.

    Returns:
        Σ w_i ℓ_i; and to `keep` the samples' gradients `[b, d]`, else nothing of them.
    """
    weights = torch.ones(len(samples)) if weights is None else weights
    live = weights.nonzero().flatten()
    total = torch.zeros(engine.d, dtype=engine.dtype)
    gradients = torch.zeros(len(samples) if keep else 0, engine.d, dtype=engine.dtype)
    loss = 0.0
    for part in _groups(recommender.lengths(samples.take(live.numpy())), len(live)):
        index = live[part]
        batch = recommender.collate(samples.take(index.numpy()))
        sums = Sums(weights[index][None].to(total))
        rows = Rows()
        reducers = [sums, rows] if keep else [sums]
        losses = engine.reduce(recommender.forward, recommender.loss, batch, reducers)
        total += sums.result()[0].cpu()
        if keep:
            gradients[index] = rows.result().cpu()
        loss += float(losses.cpu() @ weights[index].to(losses.cpu()))
    means = engine.unflatten(total / len(samples)).values()
    for parameter, mean in zip(engine.parameters(), means, strict=True):
        parameter.grad = mean.to(parameter)
    return loss, gradients


def _groups(lengths: Tensor | None, n: int) -> list[Tensor]:
    """Indices of n samples, a few at a time."""
    if lengths is None or not n:
        return [torch.arange(n)] if n else []
    return token_batches(lengths, max(int(lengths.max()), ENGINE_TOKENS))


def _check_no_dropout(model: torch.nn.Module, description: str) -> None:
    """Raise where training would drop activations at random, which the engine does not."""
    for name, module in model.named_modules():
        rate = getattr(module, "attention_dropout", 0.0)
        rate = module.p if isinstance(module, torch.nn.Dropout) else rate
        if isinstance(rate, float) and rate > 0:
            raise UsageError(
                f"{description} through the engine (train.through=engine)",
                f"the model drops activations in training ({name}: {rate:g}), the engine none",
                "Set the model's dropout to 0, or train.through=peft",
            )


class _Keeper:
    """The checkpoints of one training, or none."""

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        samples: Samples,
        config: TrainConfig,
        start: Tensor,
        weights: Tensor | None,
        *,
        trajectory: StepWriter | None,
    ) -> None:
        self._checkpoint, self._trajectory = checkpoint, trajectory
        self._open = checkpoint is not None
        if checkpoint is not None:
            ids = torch.from_numpy(samples.ids)
            self._key = digest((start, weights, ids), config.model_dump_json(), checkpoint.course)

    def read(self) -> State | None:
        if self._checkpoint is None:
            return None
        state = self._checkpoint.read(self._key)
        done = 0 if state is None else state.step
        if self._trajectory is not None and not self._trajectory.resume(done, self._key):
            return None  # what it kept on the way is not here: it is to be made again
        return state

    def stop(self) -> None:
        """No more from here on: what an observer keeps is in no checkpoint."""
        self._open = False

    def keep(self, step: int, engine: Engine, optimiser: torch.optim.Adam, totals: Tensor) -> None:
        if self._checkpoint is None or not self._open or not self._checkpoint.due(step):
            return
        moments = adam_moments(optimiser, engine.parameters())
        state = State(step, engine.theta(), moments, torch.get_rng_state(), totals)
        self._checkpoint.write(self._key, state)

    def clear(self) -> None:
        if self._checkpoint is not None:
            self._checkpoint.clear(self._key)


def _check_reached(engine: Engine, parameters: list[torch.nn.Parameter], description: str) -> None:
    """Raise where a parameter got no gradient: it would stay where it is without a word."""
    lost = [name for name, p in zip(engine.names, parameters, strict=True) if p.grad is None]
    if lost:
        raise ModelError(
            description,
            f"{len(lost)} of {len(parameters)} LoRA matrices got no gradient (first: {lost[0]})",
            "Leave out layers that take no part in the loss, and reentrant gradient checkpointing",
        )


def _gradient(parameters: list[torch.nn.Parameter]) -> Tensor:
    return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def _add_l2(parameters: list[torch.nn.Parameter], centre: list[Tensor], l2: float) -> None:
    with torch.no_grad():
        for p, start in zip(parameters, centre, strict=True):
            assert p.grad is not None  # checked before
            p.grad.add_(p - start, alpha=l2)


def _adam(optimiser: torch.optim.Adam, config: TrainConfig, steps: int) -> Adam:
    """Adam's second moment without its bias, and the sum of the rates of all `steps`."""
    group = optimiser.param_groups[0]
    _, squares = adam_moments(optimiser, group["params"])
    return Adam(squares / (1 - group["betas"][1] ** steps), sum(learning_rates(config, steps)))


def learning_rates(config: TrainConfig, steps: int) -> list[float]:
    """The rate of each of `steps` steps."""
    return [config.learning_rate * factor for factor in map(_schedule(config, steps), range(steps))]


def _schedule(config: TrainConfig, steps: int) -> Callable[[int], float]:
    if config.schedule == "cosine":
        return lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))
    if config.schedule == "linear":
        return lambda step: max(1 - step / steps, 0.0)
    return lambda step: 1.0
