"""A store of an updated adapter out of the stale one and a share of rows recorded again.

The share is random, so that how far its stale rows F̃ `[m, p]` are from its fresh ones F is an
estimate of how far the other stale rows are:

    cosine   mean of ⟨f̃_i, f_i⟩ / (|f̃_i| |f_i|)
    error    ‖F̃ − F‖ / ‖F‖
    influences   1 − ‖ŝ − s‖² / ‖s‖², ŝ of F̃ and s of F, as in `audit`

They go into the specification, and with it into every shard's header: no copy of such a store, and
no part of it, can be taken for one without stale rows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fudlr.common.files import atomic_folder
from fudlr.gradients.store import manifest
from fudlr.gradients.store.audit import row_errors, stale_influences
from fudlr.gradients.store.errors import StoreError
from fudlr.gradients.store.reader import Store
from fudlr.gradients.store.sealing import copy_shard
from fudlr.gradients.store.shards import Part, Shard, read_ids, read_part, write_shard
from fudlr.gradients.store.spec import Binding, Stale, StoreSpec
from fudlr.gradients.store.writer import PROJECTION

WRITER = "stale"
"""The name that shards of stale rows are under."""
DAMPING = 0.03
"""What suits a training that stopped early; the figure hangs on it but little."""


def refresh(
    old: Store, fresh: Store, out: Path, binding: Binding, *, damping: float = DAMPING
) -> tuple[Store, Stale]:
    """Write the store `out`: all of `fresh`'s rows, and `old`'s of the other samples, as stored.

    Σ g_i in full space and losses are kept where no stale row is left: the old ones are not the
    updated adapter's.

    Args:
        old: Of an earlier adapter.
        fresh: Of the updated one; a random share of `old`'s samples, same projection and dtype.
        out: An earlier store there is replaced; whole or absent whatever happens.
        binding: What the new store is made from: the updated adapter, and the data of `old`.
        damping: Of the curvature behind the probe influences.

    Returns:
        The store, and the stale rows' figures, also where none is left.

    Raises:
        StoreError: A shard is damaged, `fresh` has samples that `old` has not, or they do not
            belong together.
    """
    differences = replace(old.spec, binding=binding, stale=None).differences(
        replace(fresh.spec, binding=binding)
    )
    if differences:
        raise StoreError(
            f"rows of the store {old.folder} were to be refreshed by those of {fresh.folder}",
            f"these are of another kind: {', '.join(differences)}",
            "Record them with the projection and dtype of the store that is to be refreshed",
        )
    for store in (old, fresh):
        store.verify()
    rows = old.read(fresh.ids), fresh.read(fresh.ids)
    kept = stale_influences(*rows, damping)
    stale = Stale(old.n - fresh.n, fresh.n, **row_errors(*rows), influences=kept)
    spec = replace(old.spec, binding=binding, stale=stale if stale.rows else None)
    projection, facts = old.projection(), fresh.facts()
    with atomic_folder(out, "store") as temporary:
        manifest.start_manifest(temporary, spec)
        if projection is not None:
            projection.save(temporary / PROJECTION)
        for sequence, shard in enumerate(fresh.shards):
            copy_shard(shard, temporary, spec, "0", sequence)
        if facts is not None and not stale.rows:
            facts.save(temporary, spec, "0", len(fresh.shards) - 1)
        written = 0
        for shard in old.shards:
            written += _copy_others(shard, fresh.ids, temporary, spec, written)
        manifest.write_manifest(temporary)
    return Store.open(out, binding), stale


def _copy_others(shard: Shard, but: torch.Tensor, out: Path, spec: StoreSpec, number: int) -> int:
    """Write a shard's rows of samples that are not in `but`; how many shards that made."""
    ids = read_ids(shard)
    index = (~torch.isin(ids, but)).nonzero().flatten()
    if not len(index):
        return 0
    rows, scales = read_part(shard, 0, shard.rows)
    part = Part(ids[index], rows[index], None if scales is None else scales[index])
    write_shard(out, spec, part, writer=WRITER, sequence=number, kept=shard.kept)
    return 1
