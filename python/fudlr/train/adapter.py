"""Training of the adapter, and retraining without some samples, in the same order and scale.

L(θ) = (1/n) Σ w_i ℓ_i(θ) + (λ/2)‖θ − θ₀‖², by Adam. Retraining with mask m is the same call with
weights 1 − m: the same start, the same batches, the same divisor (each batch is divided by its
full size, never by the number kept), so that what differs is the removal alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fudlr import lora
from fudlr.common.batches import engine_batches
from fudlr.common.device import seeded, set_random_state
from fudlr.common.errors import ModelError, NumericalError, UsageError
from fudlr.common.parallel import ranks
from fudlr.common.progress import track
from fudlr.config import TrainConfig
from fudlr.data.interactions import Samples
from fudlr.gradients.recording import RunRecorder
from fudlr.gradients.store.batch import dropout_at_work
from fudlr.recommenders import Recommender
from fudlr.train.checkpoint import Checkpoint, State, load_moments
from fudlr_ext import Engine
from fudlr_ext.reducers import Sums

CHECKED = 4
"""Samples of the first pass: more than one, since samples must not depend on each other."""


@dataclass(frozen=True)
class Training:
    """What a training left.

    Attributes:
        theta: The parameters [d], on the host.
        losses: The mean weighted loss of each epoch.
    """

    theta: Tensor
    losses: list[float]


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
    recorder: RunRecorder | None = None,
    description: str = "train",
    checkpoint: Checkpoint | None = None,
) -> Training:
    """Train the adapter from `start`; the model holds the trained parameters afterwards.

    With a `checkpoint`, a training that was stopped goes on from the last one and ends bit for bit
    where it would have, its recording too.

    Args:
        recommender: Gives batches, outputs and losses.
        engine: Orders the parameters.
        samples: The n training samples.
        config: Epochs, learning rate, batch, λ, seed.
        start: θ₀ [d], the initialisation and the centre of λ.
        weights: w [n], 1 where None; 0 removes a sample.
        recorder: Records samples' gradients; without `weights`.
        description: What the progress line says.
        checkpoint: Where the state is kept on the way; nowhere where None.

    Raises:
        NumericalError: The loss is not finite.
        ModelError: A LoRA matrix gets no gradient.
        UsageError: The engine was to train a model with dropout.
        DataError: The checkpoint is damaged.
    """
    engine.load(start)
    parameters = engine.parameters()
    centre = [p.detach().clone() for p in parameters]
    n = len(samples)
    steps = config.epochs * math.ceil(n / config.batch)
    key = "" if checkpoint is None else checkpoint.key(samples, config, start, weights)
    kept = None if checkpoint is None else checkpoint.read(key)
    if kept is not None and recorder is not None and not recorder.resume(kept.step):
        kept = None  # what was recorded on the way and is not here is to be made again
    done = kept.step if kept else 0
    optimiser = torch.optim.Adam(
        [{"params": parameters, "initial_lr": config.learning_rate}], lr=config.learning_rate
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))), done - 1
    )
    totals = torch.zeros(config.epochs, dtype=torch.float64)
    here = ranks()
    with (
        lora.training(engine, checkpointing=config.checkpointing),
        seeded(config.seed + here.rank, engine.device),  # of an adapter's dropout
    ):
        dropped = dropout_at_work(recommender.model)
        if dropped and config.through == "engine":
            raise UsageError(
                f"{description} through the engine (train.through=engine)",
                f"the model drops activations in training ({dropped}), the engine none",
                "Set the model's dropout to 0, or train.through=peft",
            )
        if config.through == "engine" and n and (weights is None or bool(weights.any())):
            # The model's own code, which the engine is compared with, is slow on whole batches.
            live = np.arange(n) if weights is None else weights.nonzero()[:, 0].numpy()
            first = recommender.batch(samples.take(live[:CHECKED]))
            engine.reduce(recommender.forward, recommender.loss, first, [])
        if kept is not None:
            engine.load(kept.theta)
            load_moments(optimiser, parameters, kept.moments, done)
            set_random_state(kept.random, engine.device)
            totals += kept.totals
        order = islice(batch_order(n, config), done, None)
        for step, (epoch, index) in enumerate(
            track(order, steps, description, initial=done), start=done + 1
        ):
            own = index[here.part(len(index))]
            share = _Share(
                samples.take(own.numpy()),
                own,
                None if weights is None else weights[own],
                len(index),
                epoch,
                optimiser.param_groups[0]["lr"],
            )
            optimiser.zero_grad(set_to_none=True)
            recording = recorder if recorder is not None and recorder.wants(epoch) else None
            through = _through_engine if config.through == "engine" else _through_peft
            loss = torch.tensor([through(recommender, engine, share, recording)]).double()
            here.sum(loss)
            _finish_gradient(engine, centre, config.l2, description)
            optimiser.step()
            scheduler.step()
            totals[epoch] += loss[0] / n
            if not math.isfinite(float(totals[epoch])):
                raise NumericalError(
                    f"{description} at epoch {epoch + 1} of {config.epochs}",
                    "the loss is not finite",
                    "Lower train.learning_rate, or look for NaN in the base model",
                )
            if checkpoint is not None and step % checkpoint.every == 0:
                if recorder is not None:
                    recorder.flush()
                checkpoint.write(key, State.of(step, engine, optimiser, totals))
    if checkpoint is not None:
        checkpoint.clear(key)
    return Training(engine.theta().cpu(), [float(t) for t in totals])


class _Share(NamedTuple):
    """This process's share of a step's batch: samples, their places, weights w where not all are 1;
    of the whole batch its size b; and the step's epoch from 0, and rate."""

    samples: Samples
    places: Tensor
    weights: Tensor | None
    size: int
    epoch: int
    rate: float


def _through_peft(
    recommender: Recommender, engine: Engine, share: _Share, recorder: RunRecorder | None
) -> float:
    """Give the parameters the gradient of (1/b) Σ w_i ℓ_i, of all processes' shares; returns
    Σ w_i ℓ_i of this one's."""
    about = (share.epoch, share.places, share.rate, share.size)
    total = 0.0
    with recorder.batch(*about) if recorder else nullcontext():
        if len(share.samples):
            batch = recommender.batch(share.samples)
            losses = recommender.loss(recommender.forward(recommender.model, batch), batch)
            if share.weights is not None:
                losses = losses * share.weights.to(losses)
            (losses.sum() / share.size).backward()
            total = float(losses.detach().sum())
    if ranks().size > 1:
        mean = _taken(engine, empty=not len(share.samples))
        ranks().sum(mean)
        _give(engine, mean)
    return total


def _through_engine(
    recommender: Recommender, engine: Engine, share: _Share, recorder: RunRecorder | None
) -> float:
    """The same from the engine, samples of like length together; none of weight 0 is computed."""
    samples, index = share.samples, share.places
    weights = torch.ones(len(samples)) if share.weights is None else share.weights
    live = weights.nonzero().flatten()
    total = torch.zeros(engine.d, dtype=engine.dtype, device=engine.device)
    rows: Tensor | None = None
    loss = 0.0
    # All processes ask for it together, whatever the number of their groups.
    reducer = None if recorder is None else recorder.reducer(share.epoch)
    for part in engine_batches(recommender.lengths(samples.take(live.numpy())), len(live)):
        own = live[part]
        batch = recommender.batch(samples.take(own.numpy()))
        sums = Sums(weights[own][None].to(total))
        reducers = [sums] if reducer is None else [sums, reducer]
        losses = engine.reduce(recommender.forward, recommender.loss, batch, reducers)
        total += sums.result()[0]
        if reducer is not None:
            found = reducer.result().cpu()
            rows = found.new_zeros(len(samples), found.shape[1]) if rows is None else rows
            rows[own] = found
        loss += float(losses @ weights[own].to(losses))
    mean = total / share.size
    ranks().sum(mean)
    _give(engine, mean)
    if recorder is not None:
        recorder.take(index, rows, mean, share.rate, share.size)
    return loss


def _taken(engine: Engine, *, empty: bool) -> Tensor:
    """The parameters' gradients [d]; 0 where there were no samples."""
    if empty:
        return torch.zeros(engine.d, dtype=engine.dtype)
    _check_gradient(engine, "train")
    return torch.cat([p.grad.flatten() for p in engine.parameters() if p.grad is not None])


def _give(engine: Engine, mean: Tensor) -> None:
    """Let the parameters' gradients be `mean` [d]."""
    for parameter, own in zip(engine.parameters(), engine.unflatten(mean).values(), strict=True):
        parameter.grad = own.to(parameter, copy=True)  # λ is added to it, and not to the mean


def _check_gradient(engine: Engine, description: str) -> None:
    """Raise where a parameter got no gradient: it would stay without a word."""
    pairs = list(zip(engine.names, engine.parameters(), strict=True))
    lost = [name for name, parameter in pairs if parameter.grad is None]
    if lost:
        raise ModelError(
            description,
            f"{len(lost)} of {len(pairs)} LoRA matrices got no gradient (first: {lost[0]})",
            "Leave out layers that take no part in the loss, and reentrant gradient checkpointing",
        )


def _finish_gradient(engine: Engine, centre: list[Tensor], l2: float, description: str) -> None:
    """Add λ's part."""
    _check_gradient(engine, description)
    with torch.no_grad():
        for parameter, start in zip(engine.parameters(), centre, strict=True):
            assert parameter.grad is not None  # checked before
            parameter.grad.add_(parameter - start, alpha=l2)
