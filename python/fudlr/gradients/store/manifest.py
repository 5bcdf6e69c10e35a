"""The manifest: which shards a store has. Every fact in it can be rebuilt from the shards.

It is there so that a shard that is gone is missed; a shard that it does not know yet is one that
was finished after the manifest was last written, and counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr.common.errors import FudlrError
from fudlr.common.files import write_json
from fudlr.gradients.store.errors import StoreError
from fudlr.gradients.store.ids import rising
from fudlr.gradients.store.shards import NAME, Shard, read_header, read_ids, refuse, shard_name
from fudlr.gradients.store.spec import StoreSpec

MANIFEST = "manifest.json"


def read_manifest(folder: Path) -> tuple[StoreSpec, list[dict[str, Any]]] | None:
    """The store's specification and its listed shards; None where no manifest is.

    Raises:
        StoreError: It cannot be read, or is of another format.
    """
    path = folder / MANIFEST
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        spec = StoreSpec.from_json(value["spec"])
        listed = [dict(entry) for entry in value["shards"]]
        known = all(isinstance(entry["name"], str) for entry in listed)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, FudlrError) as error:
        raise StoreError(
            f"the store {folder} was to be read",
            f"{MANIFEST} is damaged or of another format ({error})",
            "Delete it: it is rebuilt from the shards, but then a shard that is gone is not missed",
        ) from error
    return (spec, listed) if known else None


def write_manifest(folder: Path) -> None:
    """Assemble the manifest from the shards that are there; called with the folder's lock held."""
    spec, shards, ids = collect(folder)
    entries, start = [], 0
    for shard, names in zip(shards, ids, strict=True):
        span = [int(names.min()), int(names.max())]
        place = {"row_range": [start, start + shard.rows], "id_span": span}
        entries.append({**_entry(shard), **place})
        start += shard.rows
    kept = mean_kept(shards)
    value = {"spec": spec.to_json(), "rows": start, "kept": kept, "shards": entries}
    write_json(folder / MANIFEST, value)


def start_manifest(folder: Path, spec: StoreSpec) -> None:
    """Write a manifest without shards, so that the specification is there from the start."""
    empty = {"spec": spec.to_json(), "rows": 0, "kept": {}, "shards": []}
    write_json(folder / MANIFEST, empty)


def collect(folder: Path) -> tuple[StoreSpec, list[Shard], list[Tensor]]:
    """All finished shards in the order of their names, with their ids, checked against each other.

    Reads headers and ids, never rows.

    Raises:
        StoreError: A shard is truncated, damaged, missing, replaced, of another store, or holds a
            sample that another one holds; named.
    """
    if not folder.is_dir():
        raise _absent(folder, "there is no such folder")
    manifest = read_manifest(folder)
    names = _names(folder, manifest[1] if manifest else [])
    shards = [read_header(folder / name) for name in names]
    if manifest is None and not shards:
        raise _absent(folder, "it has neither a manifest nor shards")
    spec = manifest[0] if manifest else shards[0].spec
    for shard in shards:
        differences = spec.differences(shard.spec)
        if differences:
            raise refuse(shard.path, "belongs to another store: " + ", ".join(differences))
    _compare(shards, manifest[1] if manifest else [])
    ids = [read_ids(shard) for shard in shards]
    refuse_doubles(shards, ids)
    return spec, shards, ids


def mean_kept(shards: Sequence[Shard]) -> dict[str, float]:
    """Row-weighted means of what the shards' writers measured as kept."""
    out: dict[str, float] = {}
    for name in sorted({name for shard in shards for name in shard.kept}):
        having = [shard for shard in shards if name in shard.kept]
        rows = sum(shard.rows for shard in having)
        out[name] = sum(shard.kept[name] * shard.rows for shard in having) / max(rows, 1)
    return out


def refuse_doubles(shards: Sequence[Shard], ids: Sequence[Tensor]) -> None:
    """Raise where a sample is held twice, by the names of both shards."""
    if not shards:
        return
    flat = torch.cat(list(ids))
    if rising(flat):
        return
    values, order = flat.sort(stable=True)
    twice = (values[1:] == values[:-1]).nonzero().flatten()
    if not twice.numel():
        return
    owner = torch.repeat_interleave(torch.tensor([shard.rows for shard in shards]))
    where = [shards[int(owner[order[twice[0] + step]])] for step in (0, 1)]
    raise refuse(
        where[1].path,
        f"overlaps {where[0].name}: sample {int(values[twice[0]])} is in both "
        f"({twice.numel()} rows stored twice in all)",
    )


def _entry(shard: Shard) -> dict[str, Any]:
    return {
        "name": shard.name,
        "rows": shard.rows,
        "bytes": shard.size,
        "ids_sha256": shard.ids_sha256,
        "rows_sha256": shard.rows_sha256,
        "kept": shard.kept,
    }


def _compare(shards: Sequence[Shard], listed: Sequence[dict[str, Any]]) -> None:
    entries = {entry["name"]: entry for entry in listed}
    for shard in shards:
        known = entries.get(shard.name)
        if known is None:
            continue
        wrong = [name for name, value in _entry(shard).items() if known.get(name) != value]
        if wrong:
            raise refuse(shard.path, f"is not the one in the manifest ({', '.join(wrong)} differ)")


def _names(folder: Path, listed: Sequence[dict[str, Any]]) -> list[str]:
    """Names of all shards; raises for those that the manifest lists, or a gap shows, as gone."""
    names = {path.name for path in folder.glob("rows-*")}
    last: dict[str, int] = {}
    for name in names:
        found = NAME.fullmatch(name)
        if found is None:
            raise refuse(folder / name, "has a name that no writer gives")
        last[found["writer"]] = max(last.get(found["writer"], -1), int(found["sequence"]))
    wanted = {entry["name"] for entry in listed}
    wanted |= {shard_name(writer, k) for writer, top in last.items() for k in range(top)}
    # While others write, a listing may show a later shard and not the one before it: look again.
    gone = sorted(name for name in wanted - names if not (folder / name).exists())
    if gone:
        more = f", and {len(gone) - 1} more" if len(gone) > 1 else ""
        raise refuse(folder / gone[0], f"is missing{more}")
    return sorted(names | wanted)


def _absent(folder: Path, found: str) -> StoreError:
    return StoreError(
        f"the store {folder} was to be opened", found, "Make one with fudlr train or fudlr record"
    )
