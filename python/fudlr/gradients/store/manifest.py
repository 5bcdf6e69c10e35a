"""The manifest: what a store is, and which shards it has, under a checksum of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fudlr.common.digest import digest
from fudlr.common.errors import StoreError, UsageError
from fudlr.common.files import write_json
from fudlr.gradients.store.binding import Binding, Recipe
from fudlr.gradients.store.shards import (
    DTYPES,
    NAME,
    VERSION,
    Shard,
    open_regular,
    read_header,
    refuse,
)

MANIFEST = "manifest.json"
TRAINING = "training.safetensors"


@dataclass(frozen=True)
class Manifest:
    """What a store is.

    Attributes:
        course: Digest of what the recording depends on; every shard has it.
        d: Numbers in a mean gradient, 0 where none was recorded.
        dtype: Of the rows.
        segments: Descriptions of the projections, in the order of their use.
        shards: Descriptions of the shards; see `Shard.entry`.
        binding: What it was made from; None while it is recorded.
        recipe: How a training went, of a store that has all of its steps.
        training_sha256: Of the start and the end of that training.
        audit: What was measured of the rows' losses.
    """

    course: str
    d: int
    dtype: str
    segments: tuple[dict[str, Any], ...] = ()
    shards: tuple[dict[str, Any], ...] = ()
    binding: Binding | None = None
    recipe: Recipe | None = None
    training_sha256: str | None = None
    audit: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it into `folder`."""
        value = {"version": VERSION, **asdict(self)}
        write_json(folder / MANIFEST, {**value, "sha256": digest(value)})

    def with_shards(self, shards: Sequence[Shard]) -> Manifest:
        """It with these shards."""
        return replace(self, shards=tuple(shard.entry() for shard in shards))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in `folder`; None where there is none.

    Raises:
        StoreError: It is damaged, or of another version of the format.
    """
    path = folder / MANIFEST
    if not path.is_symlink() and not path.exists():
        return None
    try:
        with open_regular(path) as file:
            value = json.loads(file.read())
        version = value["version"] if "version" in value else value["spec"]["version"]
        if version != VERSION:
            raise _old(folder, version)
        seal = value.pop("sha256")
        sound = seal == digest(value)
        del value["version"]
        binding, recipe = value.pop("binding"), value.pop("recipe")
        found = Manifest(
            **value,
            binding=None if binding is None else Binding(**binding),
            recipe=None if recipe is None else Recipe(**_tuples(recipe)),
        )
        sound = sound and found.dtype in DTYPES
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise refuse(path, f"is damaged or of another format ({error})") from error
    if not sound:
        raise refuse(path, "is corrupted: it does not match its checksum")
    return replace(found, segments=tuple(found.segments), shards=tuple(found.shards))


def listed_shards(folder: Path, manifest: Manifest) -> list[Shard]:
    """The shards that the manifest lists, their headers read and compared with it.

    Raises:
        StoreError: One is missing, damaged, or not the one that is listed; named.
    """
    found = []
    for number, entry in enumerate(manifest.shards):
        name = str(entry.get("name"))
        match = NAME.fullmatch(name)
        if match is None or int(match[1]) != number:
            raise refuse(folder / MANIFEST, f"lists a shard that no writer names so: {name!r}")
        if not (folder / name).exists():
            raise refuse(folder / name, "is missing")
        shard = read_header(folder / name)
        wrong = [key for key, value in shard.entry().items() if entry.get(key) != value]
        if wrong:
            differing = ", ".join(wrong)
            raise refuse(folder / name, f"is not the one in the manifest ({differing} differ)")
        if shard.header.course != manifest.course:
            raise refuse(folder / name, "belongs to another store")
        found.append(shard)
    return found


def _tuples(recipe: dict[str, Any]) -> dict[str, Any]:
    return {**recipe, "betas": tuple(recipe["betas"])}


def _old(folder: Path, version: Any) -> StoreError:
    return StoreError(
        f"the store {folder} was to be read",
        f"it has version {version} of the format, and this program reads {VERSION}",
        "Remove that folder and record again: `fudlr record RUN`, or train again with recording",
    )
