"""A run's store: what binds it to the run, and its recording on the back of the training."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fudlr import lora
from fudlr.common.errors import FudlrError, UsageError
from fudlr.common.progress import StageClock, track
from fudlr.config import RunConfig
from fudlr.data import Samples
from fudlr.gradients.store import (
    Binding,
    Recorder,
    RecordingWarning,
    Store,
    fingerprint,
    model_fingerprint,
)
from fudlr.gradients.store.audit import audit_rows, save_audit
from fudlr.gradients.store.rehearsal import rehearse
from fudlr.recommenders import Recommender
from fudlr_ext import Engine
from fudlr_ext.errors import EngineError

CANNOT = (FudlrError, EngineError, OSError)
"""What a recording refuses a training with; a training's own errors are no business of it."""
STORE = "store"
"""Name of the store's folder in a run's."""
Observer = Callable[[int, np.ndarray], AbstractContextManager[Any]]
"""What `train_adapter` enters around each batch, with the epoch and the samples' indices."""


def data_fingerprints(recommender: Recommender, samples: Samples, window: int) -> tuple[str, str]:
    """(data, order): all interactions; and which of them are samples, shown as which prompts."""
    interactions = samples.interactions
    columns = {
        name: torch.from_numpy(getattr(interactions, name)) for name in ("user", "item", "time")
    }
    data = fingerprint(columns, interactions.items["item_id"].to_list())
    prompts = {"kind": recommender.name, "window": window, **recommender.record()}
    return data, fingerprint(torch.from_numpy(samples.ids), prompts)


def bind(
    recommender: Recommender, theta: Tensor, samples: Samples, window: int, model: str | None = None
) -> Binding:
    """The binding of rows of `samples` at the adapter `theta` [d].

    `model` is the base model's digest where it is known: over all weights it takes a while.
    """
    data, order = data_fingerprints(recommender, samples, window)
    model = model or model_fingerprint(recommender.model)
    return Binding(model, fingerprint(theta), data, order)


@contextmanager
def ride_along(
    recommender: Recommender,
    engine: Engine,
    samples: Samples,
    *,
    config: RunConfig,
    run: Path,
    clock: StageClock,
) -> Iterator[Observer | None]:
    """Yield an observer that records the epoch of `config.record`, and leave its store in the run
    folder.

    None where nothing is to be recorded, or nothing can be and nobody insists. An error within
    leaves no store. Once training has begun the recording never ends it: where that fails, a
    `RecordingWarning` says so and the training goes on without it.

    Raises:
        UsageError: There is no such epoch, or, with `record.ride` true, this training cannot be
            recorded; before anything is trained.
        EngineError: So for a reason that the engine names.
    """
    if config.record.ride is False or config.record.trajectory:
        yield None
        return
    epoch = config.record.epoch or config.train.epochs
    if epoch > config.train.epochs:
        raise UsageError(
            f"epoch {epoch} was to be recorded (record.epoch)",
            f"the training has {config.train.epochs}",
            "Name one of them, or leave it out for the last",
        )
    try:
        _rehearse(recommender, engine, samples, config)
    except CANNOT as error:
        if config.record.ride:
            raise
        _warn(error)
        yield None
        return
    data = data_fingerprints(recommender, samples, config.data.window)
    ids = torch.from_numpy(samples.ids)
    recorder = Recorder(engine, run / STORE, data=data, config=config.record)

    riding = _Riding(recorder)

    def observer(at: int, index: np.ndarray) -> AbstractContextManager[Any]:
        if at != epoch - 1 or riding.ended:
            return nullcontext()
        return riding.batch(ids[index])

    try:
        yield observer
    except BaseException:
        recorder.close()
        raise
    if riding.ended:
        return
    with clock.stage("store"):
        try:
            store = recorder.finish()
        except Exception as error:
            riding.end(error)
            return
        audit_or_warn(store, recommender, engine, samples, config)


class _Riding:
    """A recorder whose errors end the recording, and never the training it rides on."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.ended = False

    def batch(self, ids: Tensor) -> _Batch:
        return _Batch(self, ids)

    def end(self, error: Exception) -> None:
        """Say why there is no recording from here on, and remove what there is of it."""
        self.ended = True
        with suppress(Exception):  # a disk that failed a moment ago fails again, and is said once
            self.recorder.close()
        shutil.rmtree(self.recorder.folder, ignore_errors=True)
        _warn(error)


class _Batch:
    """`recorder.batch`, entered and left without an error of its own; those within go through."""

    def __init__(self, riding: _Riding, ids: Tensor) -> None:
        self._riding = riding
        self._context = riding.recorder.batch(ids)

    def __enter__(self) -> Any:
        try:
            return self._context.__enter__()
        except Exception as error:
            self._riding.end(error)
            return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._riding.ended:
            return
        if kind is not None:
            self._context.__exit__(kind, error, trace)
            return
        try:
            self._context.__exit__(None, None, None)
        except Exception as found:
            self._riding.end(found)


def _rehearse(
    recommender: Recommender, engine: Engine, samples: Samples, config: RunConfig
) -> None:
    """Raise where this training cannot be recorded, by one batch spread over the data."""
    n = min(config.train.batch, len(samples))
    index = np.linspace(0, len(samples) - 1, n).astype(np.int64)

    def backward() -> None:
        batch = recommender.collate(samples.take(index))
        losses = recommender.loss(recommender.forward(engine.model, batch), batch)
        (losses.sum() / n).backward()

    with lora.training(engine, checkpointing=config.train.checkpointing):
        rehearse(engine, config.record, n, backward)


def _warn(error: Exception) -> None:
    warnings.warn(
        f"Training goes on without a store: {error}. `fudlr record` makes one after it",
        RecordingWarning,
        stacklevel=3,
    )


def audit_or_warn(
    store: Store,
    recommender: Recommender,
    engine: Engine,
    samples: Samples,
    config: RunConfig,
    *,
    count: int | None = None,
) -> None:
    """`audit_store`, whose failure costs the audit alone: what was recorded stays as it is."""
    try:
        audit_store(store, recommender, engine, samples, config, count=count)
    except Exception as error:
        warnings.warn(
            f"The store is whole, {store.n} rows, and can be used, but what its rows lost was not "
            f"measured: {error}. `fudlr record` measures it",
            RecordingWarning,
            stacklevel=2,
        )


def audit_damping(config: RunConfig) -> float:
    """Where training stopped early, as choose_damping has it; the figures hang on it but little."""
    return config.debias.damping or 3 * config.train.l2 or 0.03


def audit_store(
    store: Store,
    recommender: Recommender,
    engine: Engine,
    samples: Samples,
    config: RunConfig,
    *,
    count: int | None = None,
) -> None:
    """Take some samples' gradients again, in full, and write what the store's rows lost.

    The model holds the store's adapter. Samples are spread over the data, so over the recorded
    epoch too; each stored row is as old as its batch. `count` of them, or `record.audit`.
    """
    count = min(config.record.audit if count is None else count, len(samples))
    projection = store.projection()
    if count < 4 or projection is None:
        return
    index = np.linspace(0, len(samples) - 1, count).astype(np.int64)
    chosen = samples.take(index)
    gradients = whole_rows(recommender, engine, chosen, config.record.batch)
    stored = store.read(torch.from_numpy(chosen.ids))
    figures = audit_rows(gradients, stored, projection, audit_damping(config))
    save_audit(store.folder, store.spec.binding, figures)


def whole_rows(recommender: Recommender, engine: Engine, samples: Samples, size: int) -> Tensor:
    """Gradients [n, d] of `samples` at the adapter as it is, `size` at a time."""
    batches = track(recommender.batches(samples, size), -(-len(samples) // size), "whole gradients")
    face = (recommender.forward, recommender.loss)
    return torch.cat([engine.sample_grads(*face, batch) for batch in batches])
