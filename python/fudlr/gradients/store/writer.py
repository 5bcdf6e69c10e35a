"""Writing a store: append rows, be killed at any moment, go on where it stopped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import SafetensorError
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.common.files import claim_folder
from fudlr.gradients.store import manifest
from fudlr.gradients.store.encoding import encode, room, row_bytes
from fudlr.gradients.store.errors import StoreError
from fudlr.gradients.store.facts import Facts, load_facts, remove_stale
from fudlr.gradients.store.ids import ascending, contains
from fudlr.gradients.store.locks import folder_lock, lock_writer, writer_lock_path
from fudlr.gradients.store.projection import Projection
from fudlr.gradients.store.shards import NAME, Part, Shard, shard_name, write_shard
from fudlr.gradients.store.spec import Binding, StoreSpec
from fudlr.gradients.store.write_checks import check_finite, check_options

SHARD_BYTES = 64 * 2**20
PROJECTION = "projection.safetensors"


@dataclass(frozen=True)
class Rest:
    """Rows that are in no shard yet, and the facts up to them; what is left to write."""

    part: Part | None
    facts: Facts | None
    sequence: int


class StoreWriter:
    """Appends rows to a store, one of possibly several processes that do so at the same time.

    Rows are buffered until a shard is full, then written by a thread in the background; a row is
    safe once its shard is, which `flush` waits for. A writer that finds a store goes on with it:
    `missing` tells which samples are not there yet. Leaving the context by an error keeps what is
    buffered too, since every appended row is whole.

    Args:
        folder: The store; made where it is not there.
        binding: What the rows are made from; a store bound to something else is refused.
        dim: p, numbers in a row.
        dtype: `float32`, `bfloat16` or `int8`, see `encoding`.
        writer: Name of this process among those that write, letters, digits, `_` and `.`.
        shard_rows: Rows in a shard; by default as many as make 64 MiB.
        projection: What made the rows of the gradients; kept in the store, for lifting.
        facts: d, where Σ g_i `[d]` and losses are recorded beside the rows; see `facts`. A batch
            then never spans two shards.
        kept: Measured shares of what the projection keeps, such as `{"energy": 0.97}`; may be
            changed while writing, and the store reports the mean over rows.

    Raises:
        UsageError: The name, `dim`, `dtype` or `shard_rows` cannot be.
        StoreError: The folder holds another store, a bad shard, or a living writer of this name.
    """

    def __init__(
        self,
        folder: Path | str,
        binding: Binding,
        dim: int,
        dtype: str = "bfloat16",
        *,
        writer: str = "0",
        shard_rows: int | None = None,
        projection: Projection | None = None,
        facts: int | None = None,
        kept: Mapping[str, float] | None = None,
    ) -> None:
        self.folder = Path(folder)
        description = {} if projection is None else projection.description()
        self.spec = StoreSpec(dim, dtype, binding, description)
        self.writer = writer
        self.projection = projection
        self.shard_rows = shard_rows or max(1, SHARD_BYTES // row_bytes(dim, dtype))
        self.kept = dict(kept or {})
        check_options(writer, self.shard_rows, dim, projection)
        claim_folder(self.folder, "store")
        self._facts = None if facts is None else Facts.none(facts)
        self._lock: int | None = lock_writer(self.folder, writer)
        try:
            self._enter_store(projection)
        except BaseException:
            self._unlock()
            raise
        self._buffer: Part | None = None
        self._filled = 0
        self._spare: list[Part] = []
        self._waiting: set[int] = set()  # buffered
        self._since: list[tuple[Tensor, Tensor]] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fudlr-store")
        self._written: Future[Shard] | None = None
        self._failure: StoreError | None = None

    def append(
        self,
        ids: Tensor,
        rows: Tensor,
        *,
        gradient_sum: Tensor | None = None,
        losses: Tensor | None = None,
    ) -> None:
        """Add `rows` `[b, p]` of the samples `ids` `[b]`.

        Args:
            ids: The samples.
            rows: Their sketches.
            gradient_sum: Σ g_i `[d]` over these samples; needed by a writer that records facts.
            losses: ℓ_i `[b]`, where they are known.

        Raises:
            UsageError: Shapes that do not fit, or no facts where they are recorded.
            StoreError: A sample is stored already, or its row is not finite.
        """
        ids = ids.detach().to("cpu", torch.int64).contiguous()
        rows = rows.detach().to("cpu")
        if rows.dim() != 2 or rows.shape[1] != self.spec.dim or ids.shape != rows.shape[:1]:
            raise UsageError(
                f"ids [b] and rows [b, {self.spec.dim}] were to be stored",
                f"ids {tuple(ids.shape)} and rows {tuple(rows.shape)}",
                "Append one row a sample",
            )
        if self._failure is not None:
            raise self._failure
        names = ids.tolist()
        self._refuse_stored(ids, names)
        check_finite(ids, rows)
        if self._facts is not None:
            found = _batch_facts(self._facts, self.shard_rows, ids, gradient_sum, losses)
            if self._filled + len(ids) > self.shard_rows:
                self._write()
            self._facts.gradient_sum.add_(found.gradient_sum)
            self._since.append((found.ids, found.losses))
        self._waiting.update(names)
        while len(ids):
            count = self._fill(ids, rows)
            ids, rows = ids[count:], rows[count:]
            if self._filled == self.shard_rows:
                self._write()

    @property
    def n(self) -> int:
        """Number of samples that are stored or appended."""
        return len(self._stored) + len(self._waiting)

    def missing(self, ids: Tensor) -> Tensor:
        """Those of `ids` that are neither stored nor appended, in their order, `[m]`."""
        ids = ids.detach().to("cpu", torch.int64).contiguous()
        waiting = torch.tensor([name in self._waiting for name in ids.tolist()], dtype=torch.bool)
        return ids[~(contains(self._stored, ids) | waiting)]

    def recorded(self, ids: Tensor) -> bool:
        """Whether some of `ids` were appended by this writer since it was opened."""
        ids = ids.detach().to("cpu", torch.int64)
        written = contains(self._stored, ids) & ~contains(self._found, ids)
        return bool(written.any()) or not self._waiting.isdisjoint(ids.tolist())

    def flush(self) -> None:
        """Write what is buffered as a shard, and wait until it is safe on disk."""
        if self._filled:
            self._write()
        self._wait()

    def close(self) -> None:
        """Flush, and bring the manifest up to date."""
        if self._lock is None:
            return
        try:
            # After a failed shard nothing may follow: the gap would look like a lost one.
            if self._failure is None:
                self.flush()
            with folder_lock(self.folder):
                manifest.write_manifest(self.folder)
        finally:
            self.abandon()

    def rest(self) -> Rest:
        """Take out what is in no shard yet, once all shards before it are on disk."""
        self._wait()
        part = None if self._buffer is None else self._buffer.take(slice(0, self._filled))
        facts = self._facts_now()
        self._buffer, self._filled = None, 0
        return Rest(part if part is not None and len(part.ids) else None, facts, self._sequence)

    def abandon(self) -> None:
        """Let go of the store without writing what is buffered."""
        self._pool.shutdown()
        self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _enter_store(self, projection: Projection | None) -> None:
        with folder_lock(self.folder):
            for kind in ("rows", "facts"):
                for left in self.folder.glob(f".{kind}-{self.writer}-*"):
                    left.unlink()  # this writer's own, cut off: its rows count as missing
            # The projection comes first: without it on disk, a writer that goes on after a kill
            # could not make rows of the kind that the manifest promises.
            if projection is not None and not (self.folder / PROJECTION).exists():
                projection.save(self.folder / PROJECTION)
            paths = list(self.folder.glob("rows-*"))
            if not paths and manifest.read_manifest(self.folder) is None:
                manifest.start_manifest(self.folder, self.spec)
            spec, shards, ids = manifest.collect(self.folder)
            differences = self.spec.differences(spec)
            if differences:
                raise StoreError(
                    f"rows were to be added to the store {self.folder}",
                    "it is of another kind: " + ", ".join(differences),
                    "Choose another folder, or delete this one where it is no longer needed",
                )
        self._enter_facts(shards, ids)
        own = [NAME.fullmatch(shard.name) for shard in shards if shard.writer == self.writer]
        self._sequence = 1 + max((int(name["sequence"]) for name in own if name), default=-1)
        self._found = ascending(torch.cat([torch.empty(0, dtype=torch.int64), *ids]))
        self._stored = self._found

    def _enter_facts(self, shards: list[Shard], ids: list[Tensor]) -> None:
        """Go on with the facts of this writer's shards."""
        if self._facts is None:
            return
        own = [k for k, shard in enumerate(shards) if shard.writer == self.writer]
        if own:
            names = torch.cat([ids[k] for k in own])
            found = load_facts(self.folder, self.spec, [shards[k] for k in own], names)
            if found is None or found.gradient_sum.shape != self._facts.gradient_sum.shape:
                raise StoreError(
                    f"rows and facts were to be added to the store {self.folder}",
                    f"its shards of writer {self.writer} have no facts of these parameters",
                    "Record the store again from the start, or under another writer name",
                )
            self._facts = found
        remove_stale(self.folder, self.writer, shards[own[-1]].sequence if own else None)

    def _facts_now(self) -> Facts | None:
        if self._facts is None:
            return None
        ids = torch.cat([self._facts.ids, *(ids for ids, _ in self._since)])
        losses = torch.cat([self._facts.losses, *(losses for _, losses in self._since)])
        self._since.clear()
        self._facts = Facts(ids, losses, self._facts.gradient_sum)
        return Facts(ids, losses, self._facts.gradient_sum.clone())

    def _refuse_stored(self, ids: Tensor, names: list[int]) -> None:
        doubled = [name for name in names if name in self._waiting]
        doubled += ids[contains(self._stored, ids)].tolist()
        if len(set(names)) < len(names):
            doubled += [name for name, count in Counter(names).items() if count > 1]
        if doubled:
            raise StoreError(
                f"rows of {len(names)} samples were to be added to {self.folder}",
                f"{len(doubled)} of them are stored already, sample {doubled[0]} the first",
                "Append writer.missing(ids) only",
            )

    def _fill(self, ids: Tensor, rows: Tensor) -> int:
        """Encode into the buffer as many rows as there is room for; how many."""
        if self._buffer is None:
            self._buffer = self._spare.pop() if self._spare else self._room()
        into = slice(self._filled, min(self._filled + len(ids), self.shard_rows))
        count = into.stop - into.start
        part = self._buffer.take(into)
        part.ids.copy_(ids[:count])
        encode(rows[:count], part.rows, part.scales)
        self._filled = into.stop  # last, so that an interruption leaves no half row to be written
        return count

    def _room(self) -> Part:
        ids = torch.empty(self.shard_rows, dtype=torch.int64)
        return Part(ids, *room(self.shard_rows, self.spec.dim, self.spec.dtype))

    def _write(self) -> None:
        """Hand the buffer to the thread, once it is done with the one before: two at most."""
        self._wait()
        assert self._buffer is not None
        part = self._buffer.take(slice(0, self._filled))
        self._stored = ascending(torch.cat([self._stored, part.ids]))
        self._waiting.difference_update(part.ids.tolist())
        self._writing, self._buffer, self._filled = self._buffer, None, 0
        self._written = self._pool.submit(
            put_shard,
            self.folder,
            self.spec,
            Rest(part, self._facts_now(), self._sequence),
            writer=self.writer,
            kept=dict(self.kept),
        )
        self._sequence += 1

    def _wait(self) -> None:
        if self._written is not None:
            written, self._written = self._written, None
            try:
                written.result()
                self._spare.append(self._writing)
            except (OSError, SafetensorError) as error:
                self._failure = StoreError(
                    f"a shard was to be written to {self.folder}",
                    f"{shard_name(self.writer, self._sequence - 1)} could not be "
                    f"({getattr(error, 'strerror', None) or error})",
                    "Make room or repair permissions, and record again: what is stored is kept",
                )
                raise self._failure from error

    def _unlock(self) -> None:
        if self._lock is not None:
            writer_lock_path(self.folder, self.writer).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


def put_shard(
    folder: Path, spec: StoreSpec, rest: Rest, *, writer: str, kept: dict[str, float]
) -> Shard:
    """Write rows as a shard, the facts up to it before, and remove those that it replaces."""
    assert rest.part is not None
    if rest.facts is not None:
        rest.facts.save(folder, spec, writer, rest.sequence)
    shard = write_shard(folder, spec, rest.part, writer=writer, sequence=rest.sequence, kept=kept)
    if rest.facts is not None:
        remove_stale(folder, writer, rest.sequence)
    return shard


def _batch_facts(
    before: Facts, shard_rows: int, ids: Tensor, gradient_sum: Tensor | None, losses: Tensor | None
) -> Facts:
    shape = before.gradient_sum.shape
    wrong = gradient_sum is None or gradient_sum.shape != shape
    if wrong or (losses is not None and losses.shape != ids.shape) or len(ids) > shard_rows:
        raise UsageError(
            f"{len(ids)} rows were to be stored with their facts",
            f"gradient_sum is {None if gradient_sum is None else list(gradient_sum.shape)}, "
            f"losses {None if losses is None else list(losses.shape)}",
            f"Give the sum {list(shape)} and a loss a row, for at most {shard_rows} rows at once",
        )
    assert gradient_sum is not None
    if not bool(gradient_sum.isfinite().all()):
        raise StoreError(
            "the sum of per-sample gradients was to be stored",
            "it is not finite",
            "Look for NaN or overflow in the batch's loss",
        )
    known = torch.full((len(ids),), torch.nan) if losses is None else losses.detach().float().cpu()
    return Facts(ids, known, gradient_sum.detach().cpu())
