"""Reading a store: opened fast, checked before its rows are used."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from fudlr.common.digest import digest, tensor_bytes
from fudlr.common.errors import StoreError
from fudlr.gradients.projection import Projection
from fudlr.gradients.store.binding import Binding
from fudlr.gradients.store.manifest import (
    TRAINING,
    Manifest,
    listed_shards,
    read_manifest,
)
from fudlr.gradients.store.shards import Shard, Step, decode, open_regular, refuse, row_bytes
from fudlr.gradients.store.writer import projection_path

WINDOW_BYTES = 64 * 2**20
_ABOUT = {"model": "model", "adapter": "adapter", "data": "training data", "order": "order"}
T = TypeVar("T")


@dataclass(frozen=True)
class _Place:
    """Where a step lies: which shard, the step's number in it, its rows in it."""

    shard: int
    step: int
    rows: slice


class Store:
    """A recording on disk: steps in the order in which they were made.

    The closed form sees the last epoch alone, one row a sample: `ids`, `n`, `dim`, `windows`,
    `read` and `places` speak of it. The unrolled update sees all steps: `steps` and `step`.

    Opening reads the manifest, headers and ids: sizes, checksums of all but the rows, names, and
    that all shards are of one store. A shard's rows are compared with their checksum once before
    their first use, by `verify`, or on opening with `check="full"`.

    Use `Store.open`.
    """

    def __init__(self, folder: Path, manifest: Manifest, shards: Sequence[Shard]) -> None:
        self.folder, self.manifest, self.shards = folder, manifest, list(shards)
        assert manifest.binding is not None  # open
        self.binding = manifest.binding
        self._trusted: set[int] = set()
        self._places: list[_Place] = []
        tables = [shard.table() for shard in self.shards]
        for number, table in enumerate(tables):
            start = 0
            for step, count in enumerate(table["counts"].tolist()):
                self._places.append(_Place(number, step, slice(start, start + count)))
                start += count
        self._all_ids = torch.cat([table["ids"] for table in tables])
        self._shares = torch.cat([table["shares"] for table in tables])
        self.epochs = torch.cat([table["epochs"] for table in tables])
        self.rates = torch.cat([table["rates"] for table in tables])
        self.counts = torch.cat([table["counts"] for table in tables])
        self._starts = [0, *self.counts.cumsum(0).tolist()]
        self._first = int((self.epochs < self.epochs[-1]).sum())  # step of the last epoch
        self.ids = self._all_ids[self._starts[self._first] :]

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
        if manifest.binding is None or not manifest.shards:
            raise StoreError(
                asked,
                "its recording was not finished",
                "Start the recording again: it goes on where it stopped",
            )
        if binding is not None and binding != manifest.binding:
            raise _foreign(folder, binding, manifest.binding)
        store = cls(folder, manifest, listed_shards(folder, manifest))
        if check == "full":
            store.verify()
        return store

    @property
    def n(self) -> int:
        """Samples of the last epoch."""
        return self.ids.numel()

    @property
    def dim(self) -> int:
        """p, numbers in a row of the last epoch."""
        return self.shards[-1].header.dim

    @property
    def dtype(self) -> str:
        """Of the rows."""
        return self.manifest.dtype

    @property
    def bytes(self) -> int:
        """Size on disk of all shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def whole_training(self) -> bool:
        """Whether every step of a training is here, so that it can be unrolled."""
        return self.manifest.recipe is not None

    @property
    def audit(self) -> dict[str, float]:
        """What was measured of the rows' losses; empty where nothing was."""
        return self.manifest.audit

    def projection(self, segment: int = -1) -> Projection | None:
        """The projection of a segment, the last epoch's by default; None where there is none.

        Raises:
            StoreError: Its file is gone, damaged, or not the one that the manifest names.
        """
        number = self.shards[-1].header.segment if segment < 0 else segment
        about = self.manifest.segments[number]
        if about["kind"] == "none":
            return None
        path = projection_path(self.folder, number)
        found = Projection.load(path)
        if found.description() != about:
            raise refuse(path, "is not the projection that the rows were made with")
        return found

    @property
    def steps(self) -> int:
        """Steps of all epochs."""
        return len(self._places)

    def mean(self, step: int) -> Tensor:
        """Σ u_i g_i of a step, from 0, `[d]`."""
        place = self._places[step]
        shard = self._trust(place.shard)
        return shard.read("means", place.step, place.step + 1)[0]

    def step(self, step: int) -> Step:
        """A step, from 0."""
        place = self._places[step]
        shard = self._trust(place.shard)
        at = place.rows.start, place.rows.stop
        own = slice(self._starts[step], self._starts[step + 1])
        return Step(
            self._all_ids[own],
            shard.read("rows", *at),
            shard.read("scales", *at) if self.dtype == "int8" else None,
            self._shares[own],
            self.mean(step),
            float(self.rates[step]),
            int(self.epochs[step]),
            shard.header.segment,
        )

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
        for number, shard in enumerate(self.shards):
            try:
                shard.check()
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

    def info(self) -> dict[str, Any]:
        """What the store is, for a person or a file."""
        return {
            "folder": str(self.folder),
            "rows": self.n,
            "dim": self.dim,
            "dtype": self.dtype,
            "epochs": int(self.epochs.unique().numel()),
            "steps": self.steps,
            "bytes": self.bytes,
            "shards": len(self.shards),
            "training": None if self.manifest.recipe is None else asdict(self.manifest.recipe),
            "projection": self.manifest.segments[self.shards[-1].header.segment],
            "projections": len(self.manifest.segments),
            "audit": self.audit,
            "binding": asdict(self.binding),
        }

    def save_audit(self, figures: dict[str, float]) -> None:
        """Put figures into the manifest."""
        self.manifest = replace(self.manifest, audit=figures)
        self.manifest.write(self.folder)

    def windows(self, window_bytes: int = WINDOW_BYTES) -> Iterator[Window]:
        """The last epoch's rows in their order, in windows of at most `window_bytes` in a shard."""
        limit = max(1, window_bytes // row_bytes(self.dim, self.dtype))
        at = 0
        for number, first in self._last_shards():
            for start in range(first, self.shards[number].header.rows, limit):
                stop = min(start + limit, self.shards[number].header.rows)
                yield Window(slice(at, at + stop - start), self, number, start)
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
        segment = self.shards[-1].header.segment
        for number in range(first.shard, len(self.shards)):
            if self.shards[number].header.segment != segment:
                raise StoreError(
                    f"the last epoch of the store {self.folder} was to be used",
                    "its rows are of several projections",
                    "Record a store of the adapter itself (`fudlr record`)",
                )
            yield number, first.rows.start if number == first.shard else 0

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

    def _trust(self, number: int) -> Shard:
        """A shard, its rows compared with their checksum once."""
        if number not in self._trusted:
            self.shards[number].check()
            self._trusted.add(number)
        return self.shards[number]


@dataclass(frozen=True)
class Window:
    """Consecutive rows of one shard, not read yet; `places` are theirs in the last epoch."""

    places: slice
    _store: Store
    _shard: int
    _start: int

    def read(self) -> tuple[Tensor, Tensor | None]:
        """Rows `[b, p]` as stored and their scales `[b, s]` (int8).

        Raises:
            StoreError: The shard's rows do not match their checksum, on its first use.
        """
        shard = self._store._trust(self._shard)
        at = self._start, self._start + self.places.stop - self.places.start
        scales = shard.read("scales", *at) if self._store.dtype == "int8" else None
        return shard.read("rows", *at), scales


def read_ahead(reads: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What each call gives, made by a thread of its own while the one before is in use.

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


def _foreign(folder: Path, asked: Binding, found: Binding) -> StoreError:
    details = ", ".join(
        f"another {_ABOUT[name]} ({getattr(found, name)[:12]}… instead of "
        f"{getattr(asked, name)[:12]}…)"
        for name in asked.differences(found)
    )
    return StoreError(
        f"the store {folder} was to be used for this request",
        f"it was made from {details}",
        "Record a store for this adapter and data, or name the one that belongs to them",
    )
