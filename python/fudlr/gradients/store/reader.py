"""Reading a store: opened fast, checked before its rows are used."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from fudlr.common.digest import digest, tensor_bytes
from fudlr.common.errors import StoreError
from fudlr.common.parallel import ranks
from fudlr.gradients.projection import Projection
from fudlr.gradients.store.manifest import TRAINING, Binding, Manifest, read_manifest
from fudlr.gradients.store.shards import Step, decode, open_regular, refuse, row_bytes
from fudlr.gradients.store.writer import projection_path

WINDOW_BYTES = 64 * 2**20
KEPT_BYTES = 2**29
"""Of a whole store, up to which its shards stay in memory once they were read."""
TABLE_BYTES = 2**24
"""Of shards' ids and shares that stay in memory; those of others are read again."""
T = TypeVar("T")


class Window(NamedTuple):
    """Consecutive rows of one shard, not read yet.

    Attributes:
        places: Where they lie in the last epoch.
        read: Gives rows `[b, p]` as stored and their scales `[b, s]` (int8).
    """

    places: slice
    read: Callable[[], tuple[Tensor, Tensor | None]]


class _Place(NamedTuple):
    """Where a step lies: which shard, the step's number in it, its first row in it."""

    shard: int
    step: int
    start: int


class Store:
    """A recording on disk: steps in the order in which they were made.

    The closed form sees the last epoch alone, one row a sample: `ids`, `n`, `dim`, `windows`,
    `read` and `places` speak of it. The unrolled update sees all steps: `steps` and `step`.

    Opening reads the manifest, headers and ids: sizes, checksums of all but the rows, names, and
    that all shards are of one store. A shard's rows are compared with their checksum once before
    their first use, by `verify`, or on opening with `check="full"`.

    Use `Store.open`.

    Attributes:
        n, dim: Samples of the last epoch, and numbers in its rows.
        steps, counts, epochs, rates: How many in all; and of each its samples, epoch, and rate.
        dtype: Of the rows.
        kept: Whether it is small enough to stay in memory once it was read.
        whole_training: Whether every step of a training is here, so that it can be unrolled.
        about_projection: The description of the last epoch's projection.
    """

    def __init__(self, folder: Path, manifest: Manifest, binding: Binding) -> None:
        self.folder, self.manifest, self.binding = folder, manifest, binding
        self.shards = manifest.shards
        self._trusted: set[int] = set()
        self._kept: dict[int, dict[str, Tensor]] = {}
        # Of several ranks each reads its share of the rows, and keeps that where it uses it.
        self.kept = self.bytes <= KEPT_BYTES and ranks().size == 1
        largest = 12 * max(shard.rows for shard in self.shards)
        tables = max(2, TABLE_BYTES // max(1, largest))
        self._table = lru_cache(tables)(lambda number: self.shards[number].table())
        self._places: list[_Place] = []
        facts: dict[str, list[Tensor]] = {"counts": [], "epochs": [], "rates": [], "firsts": []}
        for number in range(len(self.shards)):
            table = self._table(number)
            starts = (table["counts"].cumsum(0) - table["counts"]).tolist()
            self._places += [_Place(number, step, start) for step, start in enumerate(starts)]
            for name in ("counts", "epochs", "rates"):
                facts[name].append(table[name])
            # An empty step, which a rank's part may have, is nowhere the first.
            padded = torch.cat([table["ids"], torch.tensor([-1])])
            facts["firsts"].append(padded[torch.tensor(starts, dtype=torch.int64)])
        self.counts, self.epochs, self.rates, self._firsts = map(torch.cat, facts.values())
        self._starts = [0, *self.counts.cumsum(0).tolist()]
        self._first = int((self.epochs < self.epochs[-1]).sum())  # step of the last epoch
        self.n, self.dim = self._starts[-1] - self._starts[self._first], self.shards[-1].dim
        self.dtype, self.steps = manifest.dtype, len(self._places)
        self.whole_training = manifest.recipe is not None
        self.about_projection = manifest.segments[self.shards[-1].segment]

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
            StoreError: Foreign (says whether model, adapter, data or order differ), unfinished, or
                a file is truncated, corrupted, mixed in or missing; it is named.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        asked = f"the store {folder} was to be opened"
        if manifest is None:
            found = "it has no manifest" if folder.is_dir() else "there is no such folder"
            raise StoreError(asked, found, "Make one with `fudlr train` or `fudlr record`")
        made_from = manifest.binding
        if made_from is None or not manifest.shards:
            raise StoreError(
                asked,
                "its recording was not finished",
                "Start the recording again: it goes on where it stopped",
            )
        if binding is not None and binding != made_from:
            details = ", ".join(
                f"another {name.replace('data', 'training data')} "
                f"({getattr(made_from, name)[:12]}… instead of {getattr(binding, name)[:12]}…)"
                for name in binding.differences(made_from)
            )
            raise StoreError(
                f"the store {folder} was to be used for this request",
                f"it was made from {details}",
                "Record a store for this adapter and data, or name the one that belongs to them",
            )
        for shard in manifest.shards:
            shard.check_header()
        store = cls(folder, manifest, made_from)
        if check == "full":
            store.verify()
        return store

    @property
    def bytes(self) -> int:
        """Size on disk of all shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def audit(self) -> dict[str, float]:
        """What was measured of the rows' losses; empty where nothing was."""
        return self.manifest.audit

    def projection(self, segment: int = -1) -> Projection:
        """The projection of a segment, the last epoch's by default.

        Raises:
            StoreError: Its file is gone, damaged, or not the one that the manifest names.
        """
        number = self.shards[-1].segment if segment < 0 else segment
        path = projection_path(self.folder, number)
        found = Projection.load(path)
        if found.description() != self.manifest.segments[number]:
            raise refuse(path, "is not the projection that the rows were made with")
        return found

    def first_ids(self) -> Tensor:
        """The first sample of each step, `[steps]`."""
        return self._firsts

    @cached_property
    def ids(self) -> Tensor:
        """The names of the last epoch's samples `[n]`."""
        first = self._places[self._first]
        parts = [self._table(at)["ids"] for at in range(first.shard, len(self.shards))]
        return torch.cat([parts[0][first.start :], *parts[1:]])

    @cached_property
    def largest_id(self) -> int:
        """Of the last epoch's samples; n − 1 where they are called 0 to n − 1."""
        first = self._places[self._first]
        tables = ((at, self._table(at)["ids"]) for at in range(first.shard, len(self.shards)))
        parts = (ids[first.start :] if at == first.shard else ids for at, ids in tables)
        return max(int(ids.max()) for ids in parts if len(ids))

    def names(self, places: slice) -> Tensor:
        """Those of a window, without the others."""
        at = places.start
        for number, first in self._last_shards():
            rows = self.shards[number].rows - first
            if at < rows:
                return self._table(number)["ids"][first + at :][: places.stop - places.start]
            at -= rows
        raise IndexError(places)

    def mean(self, step: int) -> Tensor:
        """Σ u_i g_i of a step, from 0, `[d]`."""
        shard, at, _ = self._places[step]
        return self._read_of(shard, "means", at, at + 1)[0]

    def composition(self, step: int) -> tuple[Tensor, Tensor]:
        """A step's samples, from 0, and their shares u_i of its gradient, `[b]`."""
        shard, _, start = self._places[step]
        table, stop = self._table(shard), start + int(self.counts[step])
        return table["ids"][start:stop], table["shares"][start:stop]

    def step(self, step: int, own: slice | None = None) -> Step:
        """A step, from 0, with the rows of all its samples or of those `own`."""
        shard, _, start = self._places[step]
        ids, shares = self.composition(step)
        own = own or slice(0, len(ids))
        rows, scales = self._read(shard, start + own.start, start + own.stop)
        facts = (float(self.rates[step]), int(self.epochs[step]), self.shards[shard].segment)
        return Step(ids, rows, scales, shares, self.mean(step), *facts, own)

    def mean_gradient(self) -> Tensor | None:
        """Mean over the last epoch of each step's Σ u_i g_i, weighted by samples, `[d]`; None where
        it was not recorded."""
        if not self.manifest.d:
            return None
        last = range(self._first, self.steps)
        total = sum(self.mean(step).double() * self.counts[step] for step in last)
        assert isinstance(total, Tensor)
        return (total / self.counts[self._first :].sum()).float()

    def training(self) -> dict[str, Tensor]:
        """`start` and `end` of the training `[d]`, and its optimiser's state before, if any.

        Raises:
            StoreError: The store is not of a whole training, or the file is damaged.
        """
        path = self.folder / TRAINING
        try:
            with open_regular(path) as file:
                found = load(file.read())
        except SafetensorError as error:
            raise refuse(path, f"cannot be read ({error})") from error
        if digest(found) != self.manifest.training_sha256:
            raise refuse(path, "does not match its checksum")
        return found

    def verify(self) -> None:
        """Compare all rows, projections and the training's ends with their checksums.

        Raises:
            StoreError: Some differ; every such shard is named.
        """
        errors = []
        for number in range(len(self.shards)):
            try:
                self.shards[number].check()
                self._trusted.add(number)
            except StoreError as error:
                errors.append(error)
        if errors:
            found = "; ".join(error.found for error in errors)
            raise StoreError(errors[0].asked, found, errors[0].remedy)
        for segment in range(len(self.manifest.segments)):
            self.projection(segment)
        if self.whole_training:
            self.training()

    def save_audit(self, figures: dict[str, float]) -> None:
        """Put figures into the manifest."""
        self.manifest = replace(self.manifest, audit=figures)
        self.manifest.write(self.folder)

    def windows(self, window_bytes: int = WINDOW_BYTES) -> Iterator[Window]:
        """The last epoch's rows in their order, in windows of at most `window_bytes` in a shard."""
        limit = max(1, window_bytes // row_bytes(self.dim, self.dtype))
        at = 0
        for number, first in self._last_shards():
            for start in range(first, self.shards[number].rows, limit):
                stop = min(start + limit, self.shards[number].rows)
                read = partial(self._read, number, start, stop)
                yield Window(slice(at, at + stop - start), read)
                at += stop - start

    def read(self, ids: Tensor) -> Tensor:
        """The last epoch's rows of some samples as float32, `[m, p]` for `ids` `[m]`.

        Raises:
            StoreError: A sample is not in it.
        """
        places = self.places(ids)
        out = torch.empty(ids.numel(), self.dim)
        for window in self.windows():
            mine = ((places >= window.places.start) & (places < window.places.stop)).nonzero()[:, 0]
            if mine.numel():
                rows, scales = window.read()
                index = places[mine] - window.places.start
                out[mine] = decode(rows[index], None if scales is None else scales[index])
        return out

    def places(self, ids: Tensor) -> Tensor:
        """Where in the last epoch the samples `ids` lie, `[m]`.

        Raises:
            StoreError: A sample is not in it, or some sample is there twice.
        """
        values, order = self._sorted
        at = torch.searchsorted(values, ids).clamp(max=self.n - 1)
        absent = ids[values[at] != ids]
        if absent.numel():
            raise StoreError(
                f"{ids.numel()} samples were asked of the store {self.folder}",
                f"{absent.numel()} are not in its last epoch, sample {int(absent[0])} the first",
                "Record them, or ask for samples that are stored",
            )
        return at if order is None else order[at]

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor | None]:
        """The ids ascending, and where they lie; None where they lie so."""
        if bool((self.ids[1:] > self.ids[:-1]).all()):
            return self.ids, None
        values, order = self.ids.sort()
        twice = values[1:][values[1:] == values[:-1]]
        if twice.numel():
            raise StoreError(
                f"the last epoch of the store {self.folder} was to be used",
                f"{twice.numel()} samples are in it twice, sample {int(twice[0])} the first",
                "Record an epoch that shows each sample once (`fudlr record` does)",
            )
        return values, order

    def _last_shards(self) -> Iterator[tuple[int, int]]:
        """Each shard of the last epoch, with its first row that is of it."""
        first = self._places[self._first]
        segment = self.shards[-1].segment
        for number in range(first.shard, len(self.shards)):
            if self.shards[number].segment != segment:
                raise StoreError(
                    f"the last epoch of the store {self.folder} was to be used",
                    "its rows are of several projections",
                    "Record a store of the adapter itself (`fudlr record`)",
                )
            yield number, first.start if number == first.shard else 0

    def content_sha256(self) -> str:
        """sha256 over all steps: equal for equal content, however it was cut into shards."""
        found = hashlib.sha256()
        for number in range(self.steps):
            step = self.step(number)
            for tensor in (step.ids, step.shares, step.mean, step.rows, step.scales):
                if tensor is not None:
                    found.update(tensor_bytes(tensor))
            found.update(f"{step.rate} {step.epoch}".encode())
        return found.hexdigest()

    def _read(self, number: int, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Rows of a shard and their scales."""
        rows = self._read_of(number, "rows", start, stop)
        scales = self._read_of(number, "scales", start, stop) if self.dtype == "int8" else None
        return rows, scales

    def _read_of(self, number: int, name: str, start: int, stop: int) -> Tensor:
        """Rows of a shard's tensor, the shard compared with its checksum once."""
        if number in self._kept:
            return self._kept[number][name][start:stop]
        if number in self._trusted and not self.kept:
            return self.shards[number].read(name, start, stop)
        body = self.shards[number].load()  # read once for the checksum and for what is asked
        self._trusted.add(number)
        if self.kept:
            self._kept[number] = body
        return body[name][start:stop]


def read_ahead(reads: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What each call gives, made by a thread of its own while the one before is in use; for reads
    that wait for a disk.

    Raises:
        StoreError: As the call does, when it is its turn.
    """
    with ThreadPoolExecutor(1, "fudlr-read-ahead") as thread:
        coming: deque[Future[T]] = deque()
        for read in reads:
            coming.append(thread.submit(read))
            if len(coming) > 1:
                yield coming.popleft().result()
        for ready in coming:
            yield ready.result()
