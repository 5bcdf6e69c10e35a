"""One store out of several: the last epochs' steps copied as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fudlr.common.digest import digest
from fudlr.common.errors import StoreError, UsageError
from fudlr.common.files import check_replaceable, remove_folder, replace_folder
from fudlr.gradients.store.manifest import Binding
from fudlr.gradients.store.reader import Store
from fudlr.gradients.store.writer import StoreWriter


def merge(folders: Sequence[Path], out: Path, *, combine_data: bool = False) -> Store:
    """Write the last epochs' rows of the stores in `folders` into the new store `out`, bit by bit
    as stored. It serves the closed form.

    Args:
        folders: Stores of the same model, adapter, projection and dtype.
        out: Must not be there yet; whole or absent whatever happens.
        combine_data: Also where data or order differ, for samples that came later; the new store
            is bound to the digest of all of theirs.

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
    check_replaceable(out, "store")
    stores = [Store.open(folder, check="full") for folder in folders]
    first = stores[0]
    _check(stores, combine_data=combine_data)
    bindings = [store.binding for store in stores]
    same = all(binding == bindings[0] for binding in bindings)
    binding = bindings[0] if same else joint_binding(bindings)
    temporary = out.with_name(f".{out.name}.merging")
    remove_folder(temporary, "store")
    try:
        course = digest([store.manifest.course for store in stores])
        with StoreWriter(temporary, course, first.manifest.d, first.dtype) as writer:
            writer.use(first.projection())
            for store in stores:
                for number in range(store.steps):
                    if store.epochs[number] == store.epochs[-1]:
                        writer.put(replace(store.step(number), epoch=1, segment=0))
            dropout = {k: v for store in stores for k, v in store.manifest.dropout.items()}
            writer.finish(binding, dropout=dropout)
        audit = _joint_audit(stores)
        if audit:
            Store.open(temporary).save_audit(audit)
        replace_folder(temporary, out, "store")
    finally:
        remove_folder(temporary, "store")
    return Store.open(out, binding)


def _joint_audit(stores: Sequence[Store]) -> dict[str, float]:
    """Means of all audits over rows; empty where one is missing."""
    audits = [store.audit for store in stores]
    if not all(audits) or any(audit.keys() != audits[0].keys() for audit in audits):
        return {}
    pairs, rows = list(zip(stores, audits, strict=True)), sum(store.n for store in stores)
    return {name: sum(s.n * audit[name] for s, audit in pairs) / rows for name in audits[0]}


def joint_binding(bindings: Sequence[Binding]) -> Binding:
    """What a store is bound to that `merge` made with `combine_data` of differing ones."""
    return Binding(
        model=bindings[0].model,
        adapter=bindings[0].adapter,
        data=digest(sorted(binding.data for binding in bindings)),
        order=digest(sorted(binding.order for binding in bindings)),
    )


def _check(stores: Sequence[Store], *, combine_data: bool) -> None:
    """Refuse stores of different kinds, and samples that are in two of them."""
    first = stores[0]
    for store in stores[1:]:
        differing = [f"another {name}" for name in first.binding.differences(store.binding)]
        if combine_data:
            differing = [word for word in differing if word.split()[-1] in ("model", "adapter")]
        mine, its = (each.about_projection["fingerprint"] for each in (first, store))
        facts = {
            "projection": mine != its,
            "dtype": first.dtype != store.dtype,
            "mean gradients": first.manifest.d != store.manifest.d,
        }
        differing += [f"another {name}" for name, differs in facts.items() if differs]
        if differing:
            raise StoreError(
                f"the stores {first.folder} and {store.folder} were to be merged",
                f"the second is of another kind: {', '.join(differing)}",
                "Merge stores of one model, adapter, projection and dtype; samples that came "
                "later are allowed with combine_data",
            )
    values, counts = torch.cat([store.ids for store in stores]).unique(return_counts=True)
    if bool((counts > 1).any()):
        raise StoreError(
            f"{len(stores)} stores were to be merged",
            f"{int((counts > 1).sum())} samples are in two of them, sample "
            f"{int(values[counts > 1][0])} the first",
            "Leave one of the stores out",
        )
