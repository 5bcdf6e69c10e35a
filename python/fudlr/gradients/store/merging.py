"""One store out of several: shards copied as they are, under new names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fudlr.common.errors import UsageError
from fudlr.common.files import atomic_folder
from fudlr.gradients.store import manifest
from fudlr.gradients.store.audit import save_audit
from fudlr.gradients.store.errors import StoreError
from fudlr.gradients.store.facts import Facts
from fudlr.gradients.store.reader import Store
from fudlr.gradients.store.sealing import copy_shard
from fudlr.gradients.store.shards import read_ids
from fudlr.gradients.store.spec import STALE, Binding, Stale, StoreSpec, fingerprint
from fudlr.gradients.store.writer import PROJECTION


def merge(folders: Sequence[Path], out: Path, *, combine_data: bool = False) -> Store:
    """Write all rows of the stores in `folders` into the new store `out`, bit by bit as stored.

    Args:
        folders: Stores of the same model, adapter, projection, dimension and dtype.
        out: Must not be there yet; whole or absent whatever happens.
        combine_data: Also where data or order differ, for samples that came later; the new store
            is bound to the fingerprint of all of theirs.

    Raises:
        UsageError: No folder, or `out` is there.
        StoreError: A store is damaged, they do not belong together, or a sample is in two of them.
    """
    if not folders or out.exists():
        raise UsageError(
            f"{len(folders)} stores were to be merged into {out}",
            "it is there already" if folders else "there is nothing to merge",
            "Name at least one store, and a folder that is not there yet",
        )
    stores = [Store.open(folder) for folder in folders]
    spec = _common_spec(stores, combine_data)
    shards = [shard for store in stores for shard in store.shards]
    manifest.refuse_doubles(shards, [read_ids(shard) for shard in shards])
    with atomic_folder(out, "store") as temporary:
        manifest.start_manifest(temporary, spec)
        projection = stores[0].projection()
        if projection is not None:
            projection.save(temporary / PROJECTION)
        for store in stores:
            store.verify()
        for sequence, shard in enumerate(shards):
            copy_shard(shard, temporary, spec, "0", sequence)
        facts = [store.facts() for store in stores if store.n]
        if facts and all(facts):
            _sum(facts).save(temporary, spec, "0", len(shards) - 1)
        audit = _joint_audit(stores)
        if audit is not None:
            save_audit(temporary, spec.binding, audit)
        manifest.write_manifest(temporary)
    return Store.open(out)


def joint_binding(bindings: Sequence[Binding]) -> Binding:
    """What a store is bound to that `merge` made with `combine_data` of differing ones."""
    return Binding(
        model=bindings[0].model,
        adapter=bindings[0].adapter,
        data=fingerprint(sorted(binding.data for binding in bindings)),
        order=fingerprint(sorted(binding.order for binding in bindings)),
    )


def _joint_audit(stores: Sequence[Store]) -> dict[str, float] | None:
    """Means of all audits, weighted by rows, of squares for `error`; None where one is missing."""
    audits = [store.audit() for store in stores]
    found = [audit for audit in audits if audit is not None]
    if len(found) < len(stores) or any(audit.keys() != found[0].keys() for audit in found):
        return None
    rows = sum(store.n for store in stores)
    out: dict[str, float] = {}
    for name in found[0]:
        power = 2 if name == "error" else 1
        mean = sum(
            store.n * audit[name] ** power for store, audit in zip(stores, found, strict=True)
        ) / max(rows, 1)
        out[name] = mean ** (1 / power)
    return {**out, "samples": sum(audit["samples"] for audit in found)}


def _sum(facts: Sequence[Facts | None]) -> Facts:
    found = [each for each in facts if each is not None]
    total = found[0]
    for each in found[1:]:
        total = total.plus(each)
    return total


def _common_spec(stores: Sequence[Store], combine_data: bool) -> StoreSpec:
    first = stores[0].spec
    bindings = [store.spec.binding for store in stores]
    common = replace(first, stale=_common_stale(stores))
    if combine_data and any(binding != first.binding for binding in bindings):
        common = replace(common, binding=joint_binding(bindings))
    for store in stores[1:]:
        allowed = (STALE, *_LATER) if combine_data else (STALE,)
        differences = [word for word in first.differences(store.spec) if word not in allowed]
        if differences:
            raise StoreError(
                f"the stores {stores[0].folder} and {store.folder} were to be merged",
                f"the second is of another kind: {', '.join(differences)}",
                "Merge stores of one model, adapter, projection and dtype; samples that came "
                "later are allowed with combine_data",
            )
    return common


def _common_stale(stores: Sequence[Store]) -> Stale | None:
    """The stale rows of all, their figures weighted by rows; squares for the error."""
    found = [store.spec.stale for store in stores if store.spec.stale is not None]
    if len(found) < 2:  # bit by bit, where one store alone has any
        return found[0] if found else None
    rows = sum(each.rows for each in found)
    kept = [each.influences for each in found]
    return Stale(
        rows=rows,
        measured=sum(each.measured for each in found),
        cosine=sum(each.rows * each.cosine for each in found) / rows,
        error=(sum(each.rows * each.error**2 for each in found) / rows) ** 0.5,
        influences=None
        if None in kept
        else sum(each.rows * (each.influences or 0) for each in found) / rows,
    )


_LATER = ("another data", "another order")
