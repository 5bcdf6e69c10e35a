"""Reading a store: opened fast, checked before its rows are used."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from fudlr.gradients.store import manifest
from fudlr.gradients.store.audit import load_audit
from fudlr.gradients.store.encoding import decode, row_bytes
from fudlr.gradients.store.errors import StoreError
from fudlr.gradients.store.facts import Facts, load_facts
from fudlr.gradients.store.ids import rising
from fudlr.gradients.store.projection import Projection
from fudlr.gradients.store.shards import Shard, check_content, read_part, refuse
from fudlr.gradients.store.spec import Binding, StoreSpec, tensor_bytes
from fudlr.gradients.store.writer import PROJECTION

WINDOW_BYTES = 64 * 2**20
_ABOUT = {"model": "model", "adapter": "adapter", "data": "training data", "order": "order"}


@dataclass(frozen=True)
class Window:
    """Consecutive rows of one shard, not read yet; `places` are theirs in the store's order."""

    places: slice
    _store: Store
    _shard: Shard
    _start: int

    def read(self) -> tuple[Tensor, Tensor | None]:
        """Rows `[b, p]` as stored and their scales `[b, s]` (int8), as views of the mapped file.

        In memory when this returns, mapped for as long as the views are held.

        Raises:
            StoreError: The shard's rows do not match their checksum, on its first use.
        """
        self._store.trust(self._shard)
        count = self.places.stop - self.places.start
        return read_part(self._shard, self._start, self._start + count)


def read_ahead(windows: Iterable[Window]) -> Iterator[tuple[Window, Tensor, Tensor | None]]:
    """Windows with their rows and scales, each read, and checked on a shard's first use, by a
    thread of its own while the one before is in use: two are in memory at a time.

    Raises:
        StoreError: As `Window.read` does, when it is the bad window's turn.
    """
    with ThreadPoolExecutor(1, "fudlr-read-ahead") as thread:
        coming: deque[tuple[Window, Future[tuple[Tensor, Tensor | None]]]] = deque()
        for window in windows:
            coming.append((window, thread.submit(window.read)))
            if len(coming) > 1:
                ready, rows = coming.popleft()
                yield ready, *rows.result()
        for ready, rows in coming:
            yield ready, *rows.result()


class Store:
    """Rows on disk, in the order of the shards' names and within a shard as appended.

    Opening reads headers and ids: sizes, header checksums, names, gaps, the manifest's entries,
    doubled samples, and that all shards are of one store. The rows' own checksums are compared
    once for each shard before it is first used, by `verify`, or on opening with `check="full"`.

    Use `Store.open`.
    """

    def __init__(
        self, folder: Path, spec: StoreSpec, shards: Sequence[Shard], ids: Sequence[Tensor]
    ) -> None:
        self.folder = folder
        self.spec = spec
        self.shards = list(shards)
        self.ids = torch.cat([torch.empty(0, dtype=torch.int64), *ids])
        own = self.ids.split([shard.rows for shard in shards])
        self._ids = {shard.name: part for shard, part in zip(shards, own, strict=True)}
        self._trusted: set[str] = set()

    @classmethod
    def open(
        cls,
        folder: Path | str,
        binding: Binding | None = None,
        *,
        check: Literal["fast", "full"] = "fast",
    ) -> Self:
        """Open the store in `folder`.

        Args:
            folder: Where it is.
            binding: What the rows must have been made from; None to take them as they are.
            check: `full` compares every shard's rows with their checksum now.

        Raises:
            StoreError: Foreign (says whether model, adapter, data or order differ), or a shard is
                truncated, corrupted, mixed in, missing or overlapping; it is named.
        """
        folder = Path(folder)
        spec, shards, ids = manifest.collect(folder)
        if binding is not None:
            differences = binding.differences(spec.binding)
            if differences:
                raise _foreign(folder, binding, spec.binding, differences)
        store = cls(folder, spec, shards, ids)
        if check == "full":
            store.verify()
        return store

    @property
    def n(self) -> int:
        """Rows."""
        return self.ids.numel()

    @property
    def dim(self) -> int:
        """p, numbers in a row."""
        return self.spec.dim

    @property
    def bytes(self) -> int:
        """Size on disk of all shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def kept(self) -> dict[str, float]:
        """What the writers measured as kept by the projection, means over rows."""
        return manifest.mean_kept(self.shards)

    def projection(self) -> Projection | None:
        """The projection that made the rows, where the store has it.

        Raises:
            StoreError: Its file is gone, damaged, or not the one that the shards name.
        """
        if not self.spec.projection:
            return None
        projection = Projection.load(self.folder / PROJECTION)
        if projection.description() != self.spec.projection:
            raise refuse(
                self.folder / PROJECTION, "is not the projection that the rows were made with"
            )
        return projection

    def facts(self) -> Facts | None:
        """Σ g_i in full space and the losses of all rows; None where they were not recorded.

        Raises:
            StoreError: A file of them is gone, damaged, or of other rows.
        """
        parts = []
        for writer in sorted({shard.writer for shard in self.shards}):
            own = [shard for shard in self.shards if shard.writer == writer]
            ids = torch.cat([self._ids[shard.name] for shard in own])
            parts.append(load_facts(self.folder, self.spec, own, ids))
        found = [part for part in parts if part is not None]
        if not found or len(found) < len(parts):
            return None
        total = found[0]
        for part in found[1:]:
            total = total.plus(part)
        return total

    def audit(self) -> dict[str, float] | None:
        """What was measured of the rows' losses; see `audit`. None where it was not.

        Raises:
            StoreError: The file is damaged, or of another store.
        """
        return load_audit(self.folder, self.spec.binding)

    def verify(self) -> None:
        """Compare all rows with their checksums.

        Raises:
            StoreError: Some differ; every such shard is named.
        """
        errors = []
        for shard in self.shards:
            try:
                check_content(shard)
                self._trusted.add(shard.name)
            except StoreError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            found = "; ".join(error.found for error in errors)
            raise StoreError(errors[0].asked, found, errors[0].remedy)
        self.projection()
        self.facts()
        self.audit()

    def info(self) -> dict[str, Any]:
        """What the store is, for a person or a file: sizes, types, binding, projection, kept."""
        return {
            "folder": str(self.folder),
            "rows": self.n,
            "bytes": self.bytes,
            "shards": len(self.shards),
            "writers": sorted({shard.writer for shard in self.shards}),
            "kept": self.kept,
            "audit": self.audit(),
            **self.spec.to_json(),
        }

    def windows(self, window_bytes: int = WINDOW_BYTES) -> Iterator[Window]:
        """All rows in the store's order, in windows of at most `window_bytes` within a shard."""
        step = max(1, window_bytes // row_bytes(self.dim, self.spec.dtype))
        cuts = [
            (shard, start, min(start + step, shard.rows))
            for shard in self.shards
            for start in range(0, shard.rows, step)
        ]
        place = 0
        for shard, start, stop in cuts:
            end = place + stop - start
            yield Window(slice(place, end), self, shard, start)
            place = end

    def read(self, ids: Tensor) -> Tensor:
        """The rows of some samples as float32, `[m, p]` for `ids` `[m]`.

        Raises:
            StoreError: A sample is not in the store.
        """
        places = self.places(ids)
        out = torch.empty(ids.numel(), self.dim)
        first = 0
        for shard in self.shards:
            mine = ((places >= first) & (places < first + shard.rows)).nonzero().flatten()
            if mine.numel():
                self.trust(shard)
                rows, scales = read_part(shard, 0, shard.rows)
                index = places[mine] - first
                out[mine] = decode(rows[index], None if scales is None else scales[index])
            first += shard.rows
        return out

    def places(self, ids: Tensor) -> Tensor:
        """Where in the store's order the samples `ids` lie, `[m]`.

        Raises:
            StoreError: A sample is not in the store.
        """
        values, order = self._sorted
        place = torch.searchsorted(values, ids).clamp(max=max(self.n - 1, 0))
        absent = ids if not self.n else ids[values[place] != ids]
        if absent.numel():
            raise StoreError(
                f"{ids.numel()} samples were asked of the store {self.folder}",
                f"{absent.numel()} are not in it, sample {int(absent[0])} the first",
                "Record them, or ask for samples that are stored",
            )
        return place if order is None else order[place]

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor | None]:
        """The ids ascending, and where they lie; None where they lie so."""
        if rising(self.ids):
            return self.ids, None
        values, order = self.ids.sort()
        return values, order

    def content_sha256(self) -> str:
        """sha256 over (id, row, scales) in the order of ids: equal for equal content, however it
        was cut into shards and whoever wrote them."""
        digest = hashlib.sha256()
        parts = [read_part(shard, 0, shard.rows) for shard in self.shards]
        owner = torch.repeat_interleave(torch.tensor([shard.rows for shard in self.shards]))
        first = torch.tensor([0, *(shard.rows for shard in self.shards)]).cumsum(0)
        for place in self.ids.argsort().tolist():
            rows, scales = parts[int(owner[place])]
            index = place - int(first[owner[place]])
            digest.update(tensor_bytes(self.ids[place : place + 1]))
            digest.update(tensor_bytes(rows[index]))
            if scales is not None:
                digest.update(tensor_bytes(scales[index]))
        return digest.hexdigest()

    def trust(self, shard: Shard) -> None:
        """Compare a shard's rows with their checksum, once."""
        if shard.name not in self._trusted:
            check_content(shard)
            self._trusted.add(shard.name)


def _foreign(
    folder: Path, asked: Binding, found: Binding, differences: Sequence[str]
) -> StoreError:
    details = ", ".join(
        f"another {_ABOUT[name]} ({getattr(found, name)[:12]}… instead of "
        f"{getattr(asked, name)[:12]}…)"
        for name in differences
    )
    return StoreError(
        f"the store {folder} was to be used for this request",
        f"it was made from {details}",
        "Record a store for this adapter and data, or name the one that belongs to them",
    )
