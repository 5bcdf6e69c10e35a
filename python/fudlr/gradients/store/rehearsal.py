"""Whether a training can be recorded, before it starts: one backward pass that changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from fudlr.common.errors import UsageError
from fudlr.config import RecordConfig
from fudlr.gradients.store.batch_gradients import BatchGradients
from fudlr.gradients.store.fitting import check_held, ready_projection
from fudlr.gradients.store.projection import chosen
from fudlr_ext import Engine


def rehearse(engine: Engine, config: RecordConfig, n: int, backward: Callable[[], None]) -> None:
    """Take the gradients of a batch as an epoch's recorder would, and forget them.

    Parameters, their gradients (none, after it) and the random state are as they were.

    Args:
        engine: Over the model as it will train: its mode, and which parameters need gradients.
        config: As the recorder will have it.
        n: Samples in the batch, as many as in a batch of the training.
        backward: Runs the forward and backward pass of these n samples.

    Raises:
        UsageError: Dropout is at work, or the first batches' factors would take more memory than
            is meant for them, as far as this batch tells.
        NoGradientError: The backward pass reaches not every LoRA matrix.
        EngineError: Rows are not samples, or the adapter is of a kind or in a state that is not
            known.
    """
    refuse_dropout(engine.model)
    hook = engine.backward_hook(list(chosen(engine.shapes, config.matrices)))
    found = BatchGradients(hook.layout, torch.arange(n), 1.0, None)
    try:
        hook.open(n, found)
        with torch.random.fork_rng(devices=[]):
            backward()
        hook.close()
    finally:
        hook.remove()
        for parameter in engine.parameters():
            parameter.grad = None
    if ready_projection(engine.shapes, config) is None:
        batches = math.ceil(config.fit_samples / n)
        check_held(found.held_bytes * batches, n * batches, config)


def refuse_dropout(model: nn.Module) -> None:
    """Raise where a module drops something out now."""
    name = _random_layer(model)
    if name is not None:
        raise UsageError(
            "gradients were to be recorded from a training",
            f"the dropout of {name} is at work, so that each row would be the gradient under "
            "one random mask",
            "Train without dropout, record after training with `fudlr record`, or accept it "
            "with allow_dropout=True",
        )


def _random_layer(model: nn.Module) -> str | None:
    """The name of a module that drops something out now; None where nothing is random."""
    for name, module in model.named_modules():
        if not module.training:
            continue
        share = module.p if isinstance(module, nn.Dropout) else 0.0
        share = share or getattr(module, "attention_dropout", 0.0)
        if isinstance(share, float) and share > 0:
            return name
    return None
