"""A run's store: what binds it to the run, and its recording while the run trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fudlr import lora
from fudlr.common.batches import engine_batches
from fudlr.common.digest import digest
from fudlr.common.errors import FudlrError, RecordingWarning
from fudlr.common.files import remove_folder
from fudlr.common.parallel import ranks
from fudlr.common.progress import StageClock, track
from fudlr.config import RunConfig
from fudlr.data import Samples
from fudlr.data.rows import RowSamples
from fudlr.gradients.projection import Projection
from fudlr.gradients.store import Binding, Recipe, Recorder, Store, model_fingerprint
from fudlr.gradients.store.batch import BatchGradients
from fudlr.gradients.store.steps import check_held, check_room, fit_samples
from fudlr.recommenders import Recommender
from fudlr_ext import Engine
from fudlr_ext.errors import EngineError
from fudlr_ext.reducers import Reducer, Rows

CANNOT = (FudlrError, EngineError, OSError)
"""What a recording refuses a training with; a training's own errors are no business of it."""
STORE = "store"
"""Name of the store's folder in a run's."""
REHEARSED = 8
"""Samples of the backward pass that shows whether a training can be recorded."""
AUDITED = 64
"""Samples whose gradients are taken again, in full, to measure what the rows lost."""
PROBES = 16
"""Directions whose influences the audit compares."""
SHORT = 0.05
"""Of the share of energy that was asked for: how much may be missing without a warning."""


def data_fingerprints(recommender: Recommender, samples: Samples, window: int) -> tuple[str, str]:
    """(data, order): all interactions; and which of them are samples, shown as which prompts."""
    interactions = samples.interactions
    columns = {
        name: torch.from_numpy(getattr(interactions, name)) for name in ("user", "item", "time")
    }
    data = digest(columns, interactions.items["item_id"].to_list())
    prompts = {"kind": recommender.name, "window": window, **recommender.record()}
    texts = [samples.table.fingerprint] if isinstance(samples, RowSamples) else []
    return data, digest(torch.from_numpy(samples.ids), prompts, *texts)


def bind(
    recommender: Recommender, theta: Tensor, samples: Samples, window: int, model: str | None = None
) -> Binding:
    """The binding of rows of `samples` at the adapter `theta` [d].

    `model` is the base model's digest where it is known: over all weights it takes a while.
    """
    data, order = data_fingerprints(recommender, samples, window)
    model = model or model_fingerprint(recommender.model)
    return Binding(model, digest(theta), data, order)


@contextmanager
def recording(
    recommender: Recommender,
    engine: Engine,
    samples: Samples,
    *,
    config: RunConfig,
    run: Path,
    clock: StageClock,
    folder: Path | None = None,
    required: bool = False,
) -> Iterator[RunRecorder | None]:
    """Yield what records the epochs of `config.record`, and leave its store in the run folder.

    None where nothing is to be recorded, or nothing can be and nobody insists. An error within
    leaves no store. Once training has begun the recording never ends it: where that fails, a
    `RecordingWarning` says so and the training goes on without it. The recording lies in `folder`
    meanwhile, in the run where None. Where `required`, what cannot be recorded is refused.

    Raises:
        UsageError: With `required`, this training cannot be recorded; before anything is trained.
        EngineError: So for a reason that the engine names.
    """
    if config.record.epochs == "none":
        yield None
        return
    recorded = 1 if config.record.epochs == "last" else config.train.epochs
    steps = math.ceil(len(samples) / config.train.batch)
    try:
        rehearse(recommender, engine, samples, config)
        place, rows = folder or run, len(samples) * recorded
        check_room(place, rows, steps * recorded, engine.d, config.record)
    except CANNOT as error:
        if required:
            raise
        _warn(error)
        yield None
        return
    recorder = Recorder(
        engine,
        run / STORE,
        data=data_fingerprints(recommender, samples, config.data.window),
        config=config.record,
        recipe=Recipe(l2=config.train.l2) if config.record.epochs == "all" else None,
        course=digest(engine.theta(), config.train.model_dump(mode="json")),
        folder=folder,
    )
    first = 0 if config.record.epochs == "all" else config.train.epochs - 1
    found = RunRecorder(recorder, torch.from_numpy(samples.ids), first, steps)
    try:
        yield found
    except BaseException:
        recorder.close()
        raise
    if found.ended:
        return
    with clock.stage("store"):
        try:
            store = recorder.finish()
        except Exception as error:
            found.end(error)
            return
        audit_or_warn(store, recommender, engine, samples, config)


class RunRecorder:
    """A recorder whose errors end the recording, and never the training it rides on.

    It records the samples `ids` `[n]` from the epoch `first` on, counted from 0, of `steps` each.
    """

    def __init__(self, recorder: Recorder, ids: Tensor, first: int, steps: int) -> None:
        self._recorder, self._ids = recorder, ids
        self._first, self._steps = first, steps
        self.ended = False

    def wants(self, epoch: int) -> bool:
        """Whether the steps of `epoch`, from 0, are recorded."""
        return not self.ended and epoch >= self._first

    def resume(self, done: int) -> bool:
        """Whether the recording goes on after `done` steps of the training."""
        recorded = max(0, done - self._first * self._steps)
        if recorded == 0 or self.ended:
            return True
        return self._recorder.resume(recorded)

    @contextmanager
    def batch(self, epoch: int, index: Tensor, rate: float, size: int) -> Iterator[None]:
        """Record this process's samples of a step of `size` from the backward pass within; errors
        of the training go through."""
        self._recorder.begin_epoch(epoch + 1)
        context = self._recorder.batch(self._ids[index], divisor=size)
        with self._guarded():
            context.__enter__()
        if self.ended:
            yield
            return
        try:
            yield
        except BaseException as error:
            context.__exit__(type(error), error, error.__traceback__)
            raise
        with self._guarded():
            context.__exit__(None, None, None)
            if self._recorder.recipe is not None:
                self._recorder.step(rate)

    def reducer(self, epoch: int) -> Reducer | None:
        """What the engine reduces per-sample gradients of `epoch` to; None where to nothing."""
        if self.ended:
            return None
        with self._guarded():
            self._recorder.begin_epoch(epoch + 1)
            return self._recorder.reducer()
        return None

    def take(
        self, index: Tensor, rows: Tensor | None, mean: Tensor, rate: float, size: int
    ) -> None:
        """Take a step of `size` samples that the engine made: this process's rows `[b, …]` as
        `reducer` has them, None where it has no samples, and the mean of all."""
        if self.ended:
            return
        with self._guarded():
            self._recorder.take(self._ids[index], rows, mean, rate, size)

    def flush(self) -> None:
        """Let the recording go on from here."""
        with self._guarded():
            if not self.ended:
                self._recorder.flush()

    def end(self, error: Exception) -> None:
        """Say why there is no recording from here on."""
        self.ended = True
        with suppress(Exception):  # a disk that failed a moment ago fails again, and is said once
            self._recorder.close()
            remove_folder(self._recorder.folder, "store")
        _warn(error)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.end(error)


def rehearse(recommender: Recommender, engine: Engine, samples: Samples, config: RunConfig) -> None:
    """Take the gradients of some samples, spread over the data, as a recorder would, and forget
    them.

    Parameters, their gradients (none, after it) and the random state are as they were.

    Raises:
        UsageError: Whole gradients would take more memory than is meant for them.
        NoGradientError: The backward pass reaches not every LoRA matrix.
        EngineError: Rows are not samples, or the adapter is of a kind or in a state that is not
            known.
    """
    n = min(REHEARSED, config.train.batch, len(samples))
    index = np.linspace(0, len(samples) - 1, n).astype(np.int64)
    with lora.training(engine, checkpointing=config.train.checkpointing):
        check_held(max(config.train.batch, fit_samples(engine.d)), engine.d)
        hook = engine.backward_hook(engine.names)
        try:
            hook.open(n, BatchGradients(hook.layout, torch.arange(n), torch.ones(n), Rows()))
            with torch.random.fork_rng(devices=[]):
                batch = recommender.batch(samples.take(index))
                losses = recommender.loss(recommender.forward(engine.model, batch), batch)
                (losses.sum() / n).backward()
            hook.close()
        finally:
            hook.remove()


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
) -> None:
    """Measure what the store's rows lost, and say first what is missing of the energy asked for.

    The model holds the store's adapter. Some samples' gradients are taken again, in full; a failure
    costs the audit alone.
    """
    count = min(AUDITED, len(samples))
    if count < 4:
        return
    try:
        index = np.linspace(0, len(samples) - 1, count).astype(np.int64)
        chosen = samples.take(index)
        here = ranks()
        with here.together():
            mine = chosen.take(np.arange(count)[here.part(count)])
            own = whole_rows(recommender, engine, mine, config.train.batch)
        gradients = here.cat(own)
        stored = store.read(torch.from_numpy(chosen.ids))
        # Where training stopped early, as choose_damping has it; figures depend on it but little.
        damping = config.debias.damping or 3 * config.train.l2 or 0.03
        store.save_audit(audit_rows(gradients, stored, store.projection(), damping))
    except Exception as error:
        warnings.warn(
            f"The store is whole, {store.n} rows, and can be used, but what its rows lost was not "
            f"measured: {error}. `fudlr record` measures it",
            RecordingWarning,
            stacklevel=2,
        )
        return
    short = shortfall(store, config)
    if short:
        warnings.warn(short, RecordingWarning, stacklevel=2)


def audit_rows(
    gradients: Tensor, stored: Tensor, projection: Projection, damping: float
) -> dict[str, float]:
    """What a store's rows lost: by the projection, by their type, and by being recorded early.

    Gradients G `[m, d]`, m ≥ 4, are taken again, in full, at the adapter that the store is of;
    `stored` are the same samples' rows `[m, p]`. With half of G as G₁ and sums of the other half
    with random signs as probes w:

        energy      ‖S G‖² / ‖G‖²                                    of all LoRA matrices
        influences  1 − ‖ŝ − s‖² / ‖s‖²,  s = G₁ (G₁ᵀG₁/m₁ + damping)⁻¹ w,  ŝ the same of sketches
        cosine      mean of ⟨stored row, S g⟩ / (|stored row| |S g|)
        error       ‖stored rows − S G‖ / ‖S G‖

    The inverse is taken on the side of the samples: s = (G₁G₁ᵀ/m₁ + damping)⁻¹ G₁ w.
    """
    sketches = projection.project(gradients)
    half = len(gradients) // 2
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (PROBES, len(gradients) - half), generator=generator) * 2.0 - 1.0
    probes = signs.to(gradients) @ gradients[half:]
    exact = _influences(gradients[:half], probes, damping)
    sketched = _influences(sketches[:half], projection.project(probes), damping)
    return {
        "samples": float(len(gradients)),
        "energy": projection.energy_kept(gradients),
        "influences": 1 - _square(sketched - exact) / _square(exact),
        "cosine": float(torch.cosine_similarity(stored, sketches, dim=1).mean()),
        "error": (_square(stored - sketches) / _square(sketches)) ** 0.5,
    }


def _influences(rows: Tensor, probes: Tensor, damping: float) -> Tensor:
    """(R Rᵀ/m + damping)⁻¹ R Wᵀ, `[m, k]`."""
    rows, probes = rows.double(), probes.double()
    gram = rows @ rows.T / len(rows)
    gram.diagonal().add_(damping)
    return torch.linalg.solve(gram, rows @ probes.T)


def _square(values: Tensor) -> float:
    return float(values.double().square().sum())


def shortfall(store: Store, config: RunConfig) -> str:
    """In words, how far a store's rows fall short of `record.energy`; empty where they do not."""
    energy, asked = store.audit.get("energy", 1.0), config.record.energy
    if energy >= asked - SHORT:
        return ""
    return (
        f"The store keeps {energy:.1%} of the gradients' energy where {asked:.0%} was asked for "
        "(record.energy): its directions were chosen from too few samples. Record "
        "again with `fudlr record`"
    )


def whole_rows(recommender: Recommender, engine: Engine, samples: Samples, size: int) -> Tensor:
    """Gradients [n, d] of `samples` at the adapter as it is, some at a time: `size` of them where
    their lengths are not known."""
    if not len(samples):
        return torch.empty(0, engine.d)
    parts = engine_batches(recommender.lengths(samples), len(samples), size)
    batches = track(recommender.parts(samples, parts), len(parts), "whole gradients")
    face = (recommender.forward, recommender.loss)
    rows = torch.cat([engine.sample_grads(*face, batch).cpu() for batch in batches])
    return rows[torch.cat(parts).argsort()]
