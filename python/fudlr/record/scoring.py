"""The store of an adapter that is trained already: one scoring pass of the engine.

Rows are taken at θ* itself, so none is stale; they serve the closed form. The batches are the same
whatever was stored before, and each is stored whole or not at all: a recording that was killed and
resumed is equal, byte for byte, to one that was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from fudlr.common.digest import digest
from fudlr.common.errors import UsageError
from fudlr.common.parallel import ranks
from fudlr.common.progress import track
from fudlr.config import RecordConfig
from fudlr.data import Samples
from fudlr.gradients.projection import PrincipalAccumulator, Projection
from fudlr.gradients.recording import STORE, audit_or_warn, whole_rows
from fudlr.gradients.store import Store, StoreWriter
from fudlr.gradients.store.manifest import read_manifest
from fudlr.gradients.store.spools import spooling, take_batches
from fudlr.gradients.store.steps import fit_samples
from fudlr.gradients.store.writer import SHARD_BYTES, projection_path
from fudlr.run import Run
from fudlr_ext.reducers import Sketch, Sums


def record_run(
    run: Run,
    out: Path | None = None,
    config: RecordConfig | None = None,
    *,
    projection: Projection | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Store:
    """Record every training sample's gradient at `run.theta`; goes on where it was stopped.

    Args:
        run: From `fudlr.load_run`, with its own adapter or another.
        out: The store's folder; the run's own by default. A finished store of this adapter and data
            that is there already is left as it is.
        config: Options; the run's own by default.
        projection: Of another store that this one should go with; else one is fitted.
        shard_bytes: See `StoreWriter`.

    Raises:
        UsageError: The run is in no folder, and none was named.
        StoreError: The folder holds a store of something else, or a damaged one.
    """
    config = config or run.config.record
    folder = out or (run.folder and run.folder / STORE)
    if not folder:
        raise UsageError("a store was to be recorded", "the run is in no folder", "Name one (out)")
    run.engine.load(run.theta)
    manifest = read_manifest(folder)
    if manifest is None or manifest.binding is None:
        about = [vars(run.binding), config.model_dump(mode="json"), run.config.train.batch]
        given = None if projection is None else projection.fingerprint
        course = digest("scoring", *about, given)
        with (
            nullcontext()
            if not ranks().first
            else StoreWriter(
                folder, course, run.engine.d, config.dtype, shard_bytes=shard_bytes
            ) as writer
        ):
            _record(run, writer, config, folder=folder, course=course, projection=projection)
        ranks().agree()
    store = Store.open(folder, run.binding)
    if not store.audit:
        audit_or_warn(store, run.recommender, run.engine, run.split.train, run.config)
    return store


def _record(
    run: Run,
    writer: StoreWriter | None,
    config: RecordConfig,
    *,
    folder: Path,
    course: str,
    projection: Projection | None,
) -> None:
    """Go on where it was stopped, each rank with every batch that is its turn; the first rank's
    `writer` takes them in."""
    samples, here = run.split.train, ranks()
    batches = torch.arange(len(samples)).split(run.config.train.batch)
    ids = torch.from_numpy(samples.ids)
    firsts = [int(ids[index[0]]) for index in batches]
    fitted = None
    if projection is None and here.told(writer is None or not writer.segments):
        fitted = _fitted(run, config)
    if writer is not None:
        found = projection or writer.last_projection() or fitted
        assert found is not None
        writer.use(found)
        take_batches(writer, firsts)
    skip = here.told(0 if writer is None else writer.steps)
    if writer is not None and here.size == 1:
        append_samples(run, samples, writer, batches[skip:], description="record gradients")
    else:
        used = Projection.load(projection_path(folder, 0))
        with spooling(folder, here, course, run.engine.d, config.dtype) as own:
            own.use(used)
            mine = batches[skip + here.rank :: here.size]
            append_samples(run, samples, own, mine, description="record gradients")
            own.flush()
        here.agree()
        if writer is not None:
            take_batches(writer, firsts)
    if writer is not None:
        writer.finish(run.binding)


def _fitted(run: Run, config: RecordConfig) -> Projection:
    """Directions from samples spread over the data, in full, each rank's share of them."""
    samples = run.split.train
    n = len(samples)
    index = torch.linspace(0, n - 1, min(fit_samples(run.engine.d), n)).long()
    chosen = samples.take(index[ranks().part(len(index))].numpy())
    moments = PrincipalAccumulator(run.engine.shapes)
    moments.add_rows(whole_rows(run.recommender, run.engine, chosen, run.config.train.batch))
    moments.pool(ranks())
    return moments.fit(config.energy)


def append_samples(
    run: Run,
    samples: Samples,
    writer: StoreWriter,
    batches: Sequence[Tensor] | None = None,
    *,
    description: str = "",
    ids: Tensor | None = None,
) -> None:
    """Append the rows of `samples` batch by batch: those of `batches`, or all.

    `writer` is of a store with mean gradients, and knows its projection; it calls the samples
    `ids` `[n]`, by their own ids where None. Nothing is shown without a `description`.
    """
    projection = writer.last_projection()
    assert projection is not None
    ids = torch.from_numpy(samples.ids) if ids is None else ids
    every = torch.arange(len(samples)).split(run.config.train.batch)
    left = every if batches is None else batches
    shown = track(left, description=description) if description else left
    for index, batch in zip(shown, run.recommender.parts(samples, left), strict=True):
        sketches, mean = Sketch(projection.sides), Sums(torch.full((1, len(index)), 1 / len(index)))
        run.engine.reduce(run.recommender.forward, run.recommender.loss, batch, [sketches, mean])
        writer.append(ids[index], sketches.result(), mean.result()[0])
