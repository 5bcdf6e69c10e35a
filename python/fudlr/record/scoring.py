"""The store of an adapter that is trained already: one scoring pass of the engine.

Rows are taken at θ* itself, so none is stale. The batches are the same whatever was stored before,
and each is stored whole or not at all: a recording that was killed and resumed is equal, byte for
byte in content, to one that was not.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.common.progress import track
from fudlr.config import RecordConfig
from fudlr.data import Samples
from fudlr.gradients.recording import STORE, audit_or_warn, whole_rows
from fudlr.gradients.store import Store, StoreWriter
from fudlr.gradients.store.encoding import row_bytes
from fudlr.gradients.store.fitting import fit_rows, load_projection
from fudlr.gradients.store.projection import Projection
from fudlr.run import Run
from fudlr_ext.reducers import Sketch, Sums

SHARD_BYTES = 8 * 2**20
"""Of rows; small, since a killed recording loses what is in no shard yet."""


def record_run(
    run: Run,
    out: Path | None = None,
    config: RecordConfig | None = None,
    *,
    projection: Projection | None = None,
    shard_rows: int | None = None,
) -> Store:
    """Record every training sample's gradient at `run.theta`; goes on where it was stopped.

    Args:
        run: From `fudlr.load_run`, with its own adapter or another.
        out: The store's folder; the run's own by default.
        config: Options; the run's own by default. A store that is there keeps its projection.
        projection: Of another store that this one should go with; else a store that is there
            keeps its own, and a new one is fitted.
        shard_rows: Samples in a shard.

    Raises:
        UsageError: The run is in no folder, and none was named.
        StoreError: The folder holds a store of something else, or a damaged one.
    """
    config = config or run.config.record
    folder = out or (run.folder and run.folder / STORE)
    if not folder:
        raise UsageError("a store was to be recorded", "the run is in no folder", "Name one (out)")
    run.engine.load(run.theta)
    if projection is None:
        projection = load_projection(folder, run.engine.shapes) or _fit(run, config)
    with StoreWriter(
        folder,
        run.binding,
        projection.dim,
        config.dtype,
        shard_rows=shard_rows or _shard_rows(projection, config, run.engine.d),
        projection=projection,
        facts=run.engine.d,
    ) as writer:
        samples = run.split.train
        ids = torch.from_numpy(samples.ids)
        append_samples(run, samples, ids, writer, config, description="record gradients")
    store = Store.open(folder, run.binding)
    if store.audit() is None:
        audit_or_warn(
            store, run.recommender, run.engine, run.split.train, run.config, count=config.audit
        )
    return store


def append_samples(
    run: Run,
    samples: Samples,
    ids: Tensor,
    writer: StoreWriter,
    config: RecordConfig,
    *,
    description: str = "",
) -> None:
    """Append the rows of `samples` that are missing, batch by batch, at the adapter as it is.

    Args:
        run: Gives model and recommender.
        samples: Of the run's catalogue.
        ids: What the store calls them, `[n]`.
        writer: Of a store with a projection and facts.
        config: Batch size.
        description: What the progress line says; none where empty.
    """
    projection = writer.projection
    assert projection is not None
    batches = torch.arange(len(samples)).split(config.batch)
    left = [index for index in batches if len(writer.missing(ids[index]))]
    sketches, ones = Sketch(projection.sides), torch.ones(1, config.batch)
    for index in track(left, description=description) if description else left:
        batch = run.recommender.collate(samples.take(index.numpy()))
        total = Sums(ones[:, : len(index)])
        losses = run.engine.reduce(
            run.recommender.forward, run.recommender.loss, batch, [sketches, total]
        )
        writer.append(
            ids[index],
            sketches.result(),
            gradient_sum=total.result()[0],
            losses=losses,
        )


def _fit(run: Run, config: RecordConfig) -> Projection:
    """Directions from samples spread over the data, in full."""
    n = len(run.split.train)
    index = torch.linspace(0, n - 1, min(config.fit_samples, n)).long()
    chosen = run.split.train.take(index.numpy())
    rows = whole_rows(run.recommender, run.engine, chosen, config.batch)
    return fit_rows(run.engine.shapes, rows, config)


def _shard_rows(projection: Projection, config: RecordConfig, d: int) -> int:
    """As many as fill a shard, and more where the facts beside it would be the larger part."""
    size = max(SHARD_BYTES, 4 * 8 * d)
    return max(config.batch, size // row_bytes(projection.dim, config.dtype))
