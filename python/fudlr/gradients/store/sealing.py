"""A recording becomes a store: bound to the adapter, which is known only when training ends.

While an epoch is recorded its rows lie in a store of their own, bound to the course of training in
place of an adapter, so that nobody takes it for a finished one. `seal` copies its shards under the
right binding, writes what was still buffered straight to its place, and puts the whole in place by
one rename: before it there is the recording, after it the store.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from fudlr.common.files import atomic_folder
from fudlr.gradients.store import manifest
from fudlr.gradients.store.facts import load_facts
from fudlr.gradients.store.projection import Projection
from fudlr.gradients.store.reader import Store
from fudlr.gradients.store.shards import (
    Part,
    Shard,
    check_content,
    read_ids,
    read_part,
    write_shard,
)
from fudlr.gradients.store.spec import Binding, StoreSpec
from fudlr.gradients.store.writer import PROJECTION, StoreWriter, put_shard


def seal(writer: StoreWriter, out: Path, binding: Binding) -> Store:
    """Turn all that was recorded in the writer's folder into the store `out`, bound to `binding`.

    Where several processes recorded, the others close their writers first. An earlier store in
    `out` is replaced; the recording is removed.

    Raises:
        StoreError: A shard is damaged.
    """
    folder = writer.folder
    rest = writer.rest()
    old, shards, ids = manifest.collect(folder)
    spec = replace(old, binding=binding)
    with atomic_folder(out, "store") as temporary:
        if (folder / PROJECTION).exists():
            Projection.load(folder / PROJECTION).save(temporary / PROJECTION)
        manifest.start_manifest(temporary, spec)
        for shard in shards:
            check_content(shard)
            copy_shard(shard, temporary, spec, shard.writer, shard.sequence)
        for name in sorted({shard.writer for shard in shards}):
            own = [k for k, shard in enumerate(shards) if shard.writer == name]
            facts = load_facts(
                folder, old, [shards[k] for k in own], torch.cat([ids[k] for k in own])
            )
            if facts is not None and not (name == writer.writer and rest.part is not None):
                facts.save(temporary, spec, name, shards[own[-1]].sequence)
        if rest.part is not None:
            put_shard(temporary, spec, rest, writer=writer.writer, kept=writer.kept)
        manifest.write_manifest(temporary)
    writer.abandon()
    shutil.rmtree(folder)
    return Store.open(out, binding)


def copy_shard(shard: Shard, out: Path, spec: StoreSpec, writer: str, sequence: int) -> None:
    """Write a shard's rows, bit by bit as stored, as one of another store."""
    rows, scales = read_part(shard, 0, shard.rows)
    part = Part(read_ids(shard), rows, scales)
    write_shard(out, spec, part, writer=writer, sequence=sequence, kept=shard.kept)
