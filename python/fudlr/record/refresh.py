"""After an adapter was updated: record a random share of the samples again, and keep the rest.

The rows of the old store are gradients at the old adapter. How far they are off at the updated one
is measured on the share, and the new store says it; see `store.refreshing`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fudlr.common.errors import UsageError
from fudlr.common.files import check_replaceable
from fudlr.config import RecordConfig
from fudlr.data import Samples
from fudlr.gradients.recording import STORE, audit_damping, audit_or_warn
from fudlr.gradients.store import Projection, Stale, Store, StoreError, refresh
from fudlr.gradients.store.manifest import read_manifest
from fudlr.record.scoring import record_run
from fudlr.run import Run


@dataclass(frozen=True)
class Refreshed:
    """A store of the updated adapter, and how far the old one's rows were off."""

    store: Store
    stale: Stale


def refresh_run(
    run: Run,
    share: float,
    out: Path,
    stale: Path | None = None,
    config: RecordConfig | None = None,
) -> Refreshed:
    """Make a store of `run.theta` from one of an earlier adapter of the same run.

    Killed, it goes on with the same share where it stopped; until it is done the rows lie in
    `<out>.recording`.

    Args:
        run: From `fudlr.load_run`, with the updated adapter.
        share: Of the samples, in (0, 1], to be recorded again, drawn with `config.seed`; 1 for all.
        out: The new store's folder.
        stale: The old store; the run's own by default.
        config: Options; the run's own by default. Projection and dtype are the old store's.

    Raises:
        UsageError: No share, no old store, or `out` is the old store or something else.
        StoreError: The old store is damaged, of another model, data or order, or of this adapter.
    """
    config = config or run.config.record
    source = stale or (run.folder and run.folder / STORE)
    _check(share, source, out)
    assert source is not None
    old, projection = _open_stale(run, source)
    chosen = _chosen(run.split.train, share, config.seed)
    part = replace(run, split=replace(run.split, train=chosen))
    recording = out.with_name(f"{out.name}.recording")
    left = read_manifest(recording) if recording.is_dir() else None
    if left is not None and left[0].binding != part.binding:
        shutil.rmtree(recording)  # of another share or adapter, which nothing can go on with
    # The audit is of the whole store, once it is there.
    options = config.model_copy(update={"dtype": old.spec.dtype, "audit": 0})
    fresh = record_run(part, recording, options, projection=projection)
    store, found = refresh(old, fresh, out, run.binding, damping=audit_damping(run.config))
    shutil.rmtree(recording)
    audit_or_warn(
        store, run.recommender, run.engine, run.split.train, run.config, count=config.audit
    )
    return Refreshed(store, found)


def _check(share: float, source: Path | None, out: Path) -> None:
    asked = f"a share of {share:g} of a store's rows was to be refreshed"
    if not 0 < share <= 1:
        raise UsageError(asked, "it is not in (0, 1]", "Use 1 to record all samples again")
    if source is None or not source.is_dir():
        where = "the run has no store" if source is None else f"there is none in {source}"
        raise UsageError(asked, where, "Name the store of the earlier adapter, or record all anew")
    if out.resolve() == source.resolve():
        raise UsageError(
            asked,
            f"{out} is the stale store itself, which belongs to the earlier adapter",
            "Name another folder for the new one (--out)",
        )
    check_replaceable(out, "store")


def _open_stale(run: Run, folder: Path) -> tuple[Store, Projection]:
    """The old store, which must differ from the run in the adapter alone."""
    old = Store.open(folder)
    asked = f"the store {folder} was to be refreshed for an updated adapter"
    differences = run.binding.differences(old.spec.binding)
    foreign = [f"another {name}" for name in differences if name != "adapter"]
    if foreign:
        raise StoreError(
            asked,
            f"it was made from {', '.join(foreign)}",
            "Name the store of this run, or record one with `fudlr record`",
        )
    if not differences:
        raise StoreError(
            asked,
            "it is of this very adapter",
            "Use it as it is; where rows in it are stale, refresh a larger share of the store that "
            "it was made from",
        )
    projection = old.projection()
    if projection is None:
        raise StoreError(
            asked, "it does not say how its rows were projected", "Record all anew: `fudlr record`"
        )
    return old, projection


def _chosen(samples: Samples, share: float, seed: int) -> Samples:
    """A random share, at least one, in the samples' order."""
    n = len(samples)
    count = max(1, round(share * n))
    return samples.take(np.sort(np.random.default_rng(seed).permutation(n)[:count]))
