"""Training of the adapter, and retraining without some samples, in the same order and scale.

L(θ) = (1/n) Σ w_i ℓ_i(θ) + (λ/2)‖θ − θ₀‖², by Adam. Retraining with mask m is the same call with
weights 1 − m: the same start, the same batches, the same divisor (each batch is divided by its
full size, never by the number kept), so that what differs is the removal alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from fudlr import lora
from fudlr.common.batches import token_batches
from fudlr.common.errors import ModelError, NumericalError, UsageError
from fudlr.common.kept import key_of
from fudlr.common.progress import track
from fudlr.config import TrainConfig
from fudlr.data.interactions import Samples
from fudlr.gradients.recording import RunRecorder
from fudlr.recommenders import Recommender
from fudlr.train.checkpoint import Checkpoint, State, adam_moments, load_moments
from fudlr_ext import Engine
from fudlr_ext.reducers import Reducer, Sums

ENGINE_TOKENS = 2048
"""Tokens that go through the engine at a time: more take memory, fewer merge weights more often."""


@dataclass(frozen=True)
class Training:
    """What a training left.

    Attributes:
        theta: The parameters [d].
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
        config: Epochs, learning rate, schedule, batch, λ, seed.
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
    if config.through == "engine":
        _check_no_dropout(recommender.model, description)
    engine.load(start)
    parameters = engine.parameters()
    centre = [p.detach().clone() for p in parameters]
    n = len(samples)
    steps = config.epochs * math.ceil(n / config.batch)
    keeper = _Keeper(checkpoint, samples, config, start, weights, recorder=recorder)
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
            rate = optimiser.param_groups[0]["lr"]
            recording = recorder if recorder is not None and recorder.wants(epoch) else None
            if config.through == "engine":
                reducer = None if recording is None else partial(recording.reducer, epoch)
                loss, rows = _through_engine(recommender, engine, part, weighted, reducer)
                if recording is not None and rows is not None:
                    recording.take(index, rows, _gradient(parameters), rate)
            else:
                with recording.batch(epoch, index, rate) if recording else nullcontext():
                    loss = _through_peft(recommender, part, weighted)
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
    return Training(engine.theta(), [float(t) for t in totals])


def _through_peft(recommender: Recommender, samples: Samples, weights: Tensor | None) -> float:
    """Give the parameters the gradient of (1/b) Σ w_i ℓ_i; returns Σ w_i ℓ_i."""
    batch = recommender.collate(samples)
    losses = recommender.loss(recommender.forward(recommender.model, batch), batch)
    if weights is not None:
        losses = losses * weights.to(losses)
    (losses.sum() / len(samples)).backward()
    return float(losses.detach().sum())


def _through_engine(
    recommender: Recommender,
    engine: Engine,
    samples: Samples,
    weights: Tensor | None,
    make_reducer: Callable[[], Reducer | None] | None,
) -> tuple[float, Tensor | None]:
    """The same from the engine, samples of like length together; none of weight 0 is computed.

    Returns:
        Σ w_i ℓ_i; and what the reducers made of the samples' gradients `[b, …]`, if there are any.
    """
    weights = torch.ones(len(samples)) if weights is None else weights
    live = weights.nonzero().flatten()
    total = torch.zeros(engine.d, dtype=engine.dtype)
    rows: Tensor | None = None
    loss = 0.0
    for part in _groups(recommender.lengths(samples.take(live.numpy())), len(live)):
        index = live[part]
        batch = recommender.collate(samples.take(index.numpy()))
        sums = Sums(weights[index][None].to(total))
        reducer = None if make_reducer is None else make_reducer()
        reducers = [sums] if reducer is None else [sums, reducer]
        losses = engine.reduce(recommender.forward, recommender.loss, batch, reducers)
        total += sums.result()[0].cpu()
        if reducer is not None:
            found = reducer.result().cpu()
            rows = found.new_zeros(len(samples), found.shape[1]) if rows is None else rows
            rows[index] = found
        loss += float(losses.cpu() @ weights[index].to(losses.cpu()))
    means = engine.unflatten(total / len(samples)).values()
    for parameter, mean in zip(engine.parameters(), means, strict=True):
        parameter.grad = mean.to(parameter)
    return loss, rows


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
        recorder: RunRecorder | None,
    ) -> None:
        self._checkpoint, self._recorder = checkpoint, recorder
        if checkpoint is not None:
            tensors = {"start": start, "ids": torch.from_numpy(samples.ids)}
            tensors |= {} if weights is None else {"weights": weights}
            self._key = key_of(tensors, config.model_dump(mode="json"), checkpoint.course)

    def read(self) -> State | None:
        if self._checkpoint is None:
            return None
        state = self._checkpoint.read(self._key)
        if state is not None and self._recorder is not None:
            # What was recorded on the way and is not here is to be made again.
            return state if self._recorder.resume(state.step) else None
        return state

    def keep(self, step: int, engine: Engine, optimiser: torch.optim.Adam, totals: Tensor) -> None:
        if self._checkpoint is None or not self._checkpoint.due(step):
            return
        if self._recorder is not None:
            self._recorder.flush()
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


def _schedule(config: TrainConfig, steps: int) -> Callable[[int], float]:
    if config.schedule == "cosine":
        return lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))
    if config.schedule == "linear":
        return lambda step: max(1 - step / steps, 0.0)
    return lambda step: 1.0
