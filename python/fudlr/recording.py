"""A run's store: what binds it to the run, and its recording on the back of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fudlr.config import RunConfig
from fudlr.data import Samples
from fudlr.errors import UsageError
from fudlr.progress import StageClock
from fudlr.recommenders import Recommender
from fudlr.store import Binding, Recorder, Store, fingerprint, model_fingerprint
from fudlr.store.audit import audit_rows, save_audit
from fudlr_ext import Engine

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


def bind(recommender: Recommender, theta: Tensor, samples: Samples, window: int) -> Binding:
    """The binding of rows of `samples` at the adapter `theta` [d]."""
    data, order = data_fingerprints(recommender, samples, window)
    return Binding(model_fingerprint(recommender.model), fingerprint(theta), data, order)


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

    None where nothing is to be recorded. An error within leaves no store.

    Raises:
        UsageError: There is no such epoch; before anything is trained.
    """
    if not config.record.ride:
        yield None
        return
    epoch = config.record.epoch or config.train.epochs
    if epoch > config.train.epochs:
        raise UsageError(
            f"epoch {epoch} was to be recorded (record.epoch)",
            f"the training has {config.train.epochs}",
            "Name one of them, or leave it out for the last",
        )
    data = data_fingerprints(recommender, samples, config.data.window)
    ids = torch.from_numpy(samples.ids)
    recorder = Recorder(engine, run / STORE, data=data, config=config.record)

    def observer(at: int, index: np.ndarray) -> AbstractContextManager[Any]:
        if at != epoch - 1:
            return nullcontext()
        return recorder.batch(ids[index])

    try:
        yield observer
    except BaseException:
        recorder.close()
        raise
    with clock.stage("store"):
        store = recorder.finish()
        audit_store(store, recommender, engine, samples, config)


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
    gradients = engine.sample_grads(
        recommender.forward, recommender.loss, recommender.collate(chosen)
    )
    # Where training stopped early, as choose_damping has it; the figure hangs on it but little.
    damping = config.debias.damping or 3 * config.train.l2 or 0.03
    stored = store.read(torch.from_numpy(chosen.ids))
    figures = audit_rows(gradients, stored, projection, damping)
    save_audit(store.folder, store.spec.binding, figures)
