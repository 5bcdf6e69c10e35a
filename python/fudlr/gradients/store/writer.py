"""Writing a store: append steps, be killed at any moment, go on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor

from fudlr.common.digest import digest
from fudlr.common.errors import NumericalError, StoreError, UsageError
from fudlr.common.files import atomic_file, claim_folder
from fudlr.gradients.matrix import check_rows, is_finite
from fudlr.gradients.projection import Projection
from fudlr.gradients.store.manifest import TRAINING, Binding, Manifest, Recipe, read_manifest
from fudlr.gradients.store.shards import DTYPES, SHARDS, Step, encode, row_bytes, write_shard

SHARD_BYTES = 8 * 2**20
"""Of a shard, at least; small, since a killed recording loses what is in none yet."""


class StoreWriter:
    """Appends steps to a store; one process at a time.

    Steps are buffered until they fill a shard. A writer that finds an unfinished store of the same
    course goes on with it: its first `steps` steps are there. A shard that was finished after the
    manifest was last written does not count. Leaving the context by an error keeps whole shards
    alone; `finish` makes it a store.

    Args:
        folder: The store; made where it is not there.
        course: Digest of what the rows depend on; a recording of another course is refused.
        d: Numbers in the mean gradients; 0 for a store without them.
        dtype: `float32`, `bfloat16` or `int8`; see `shards`.
        shard_bytes: Of a shard, at least; a step is never cut.

    Raises:
        UsageError: `dtype` is none of these, or the folder is not ours.
        StoreError: The folder holds another recording or a bad shard, or another process writes.
    """

    least = 1
    """Samples of a step, at least."""

    def __init__(
        self,
        folder: Path | str,
        course: str,
        d: int,
        dtype: str = "bfloat16",
        *,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.folder = Path(folder)
        asked = f"rows were to be recorded into {self.folder}"
        if dtype not in DTYPES:
            raise UsageError(asked, f"as {dtype}", "Choose one of " + ", ".join(DTYPES))
        claim_folder(self.folder, "store")
        self._lock = FileLock(self.folder / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                asked, "another process is doing so", "Wait for it, or name another folder"
            ) from error
        try:
            self._manifest = self._enter(asked, Manifest(course, d, dtype))
        except BaseException:
            self._lock.release()
            raise
        self._shard_bytes = shard_bytes
        self._buffer: list[Step] = []
        self._size = 0
        self._segment = -1
        self.dim = 0

    def _enter(self, asked: str, new: Manifest) -> Manifest:
        found = read_manifest(self.folder)
        if found is None:
            new.write(self.folder)
            found = new
        if (found.course, found.d, found.dtype) != (new.course, new.d, new.dtype):
            raise StoreError(
                asked,
                "it holds rows of another adapter, of other data or options",
                f"Name another folder, or remove {self.folder} where it is no longer needed",
            )
        for shard in found.shards:
            shard.check_header()
        for path in {*self.folder.glob(SHARDS)} - {shard.path for shard in found.shards}:
            path.unlink()
        return found

    @property
    def course(self) -> str:
        """Digest of what the rows depend on."""
        return self._manifest.course

    @property
    def steps(self) -> int:
        """Steps so far."""
        return sum(shard.steps for shard in self._manifest.shards) + len(self._buffer)

    @property
    def rows(self) -> int:
        """Samples in them."""
        stored = sum(shard.rows for shard in self._manifest.shards)
        return stored + sum(len(step.ids) for step in self._buffer)

    @property
    def epoch(self) -> int:
        """Of the last step that is in a shard; 0 before any."""
        shards = self._manifest.shards
        return int(shards[-1].table()["epochs"][-1]) if shards else 0

    @property
    def segments(self) -> int:
        """Projections used so far."""
        return len(self._manifest.segments)

    def last_projection(self) -> Projection | None:
        """The last of the projections that were used so far; None if none was."""
        at = projection_path(self.folder, self.segments - 1)
        return Projection.load(at) if self.segments else None

    def use(self, projection: Projection) -> None:
        """Rows from now on are sketches under `projection`."""
        known = [each["fingerprint"] for each in self._manifest.segments]
        new = projection.fingerprint not in known
        segment = len(known) if new else known.index(projection.fingerprint)
        if segment != self._segment:
            self.flush()
        if new:
            projection.save(projection_path(self.folder, segment))
            self._change(segments=(*self._manifest.segments, projection.description()))
        self._segment, self.dim = segment, projection.dim

    def append(
        self,
        ids: Tensor,
        rows: Tensor,
        mean: Tensor | None = None,
        *,
        shares: Tensor | None = None,
        rate: float = 0.0,
        epoch: int = 1,
        cut: bool = True,
    ) -> None:
        """Add one step.

        Args:
            ids: The samples `[b]`.
            rows: Their sketches `[b, p]`.
            mean: Σ u_i g_i `[d]`.
            shares: u `[b]`; 1/b each where None.
            rate: The optimiser's learning rate at this step.
            epoch: From 1.
            cut: Whether a shard may end after it.

        Raises:
            UsageError: Shapes that do not fit.
            NumericalError: A row or the mean is not finite.
        """
        b, d = len(ids), self._manifest.d
        mean = torch.empty(0) if mean is None else mean.detach().float().cpu().clone()
        shares = torch.full((b,), 1 / b) if shares is None else shares.detach().float().cpu()
        rows = rows.detach().cpu()
        shapes = (tuple(rows.shape), tuple(mean.shape), tuple(shares.shape))
        if shapes != ((b, self.dim), (d,), (b,)) or b < self.least:
            raise UsageError(
                f"a step of {b} samples was to be stored",
                f"its rows, mean and shares have the shapes {shapes}",
                f"Give [{b}, {self.dim}], [{d}] and [{b}], for at least one sample",
            )
        rows, scales = encode(rows, self._manifest.dtype)
        # A scale is as little finite as the largest number that it is of, and there are few.
        check_rows(rows if scales is None else scales, ids)
        if not is_finite(mean):
            raise NumericalError(
                "a step's mean gradient was to be stored",
                "it is not finite",
                "Look for NaN or overflow in its samples' losses; 16-bit weights often cause it",
            )
        names = ids.detach().to("cpu", torch.int64).clone()
        self.put(Step(names, rows, scales, shares, mean, rate, epoch), cut)

    def put(self, step: Step, cut: bool = True) -> None:
        """Add a step whose rows are encoded."""
        self._buffer.append(step)
        about = self._manifest
        self._size += len(step.ids) * row_bytes(self.dim, about.dtype) + 4 * about.d
        if cut and self._size >= self._shard_bytes:
            StoreWriter.flush(self)

    def flush(self) -> None:
        """Write what is buffered as a shard; it is safe on disk when this returns."""
        if not self._buffer:
            return
        about = self._manifest
        facts = {"course": about.course, "sequence": len(about.shards), "segment": self._segment,
                 "dim": self.dim, "d": about.d, "dtype": about.dtype}  # fmt: skip
        try:
            shard = write_shard(self.folder, facts, self._buffer)
            self._buffer, self._size = [], 0
            self._change(shards=(*about.shards, shard))
        except OSError as error:
            raise StoreError(
                f"a shard was to be written to {self.folder}",
                f"it could not be ({error.strerror or error})",
                "Make room or repair permissions, and start again: what is stored is kept",
            ) from error

    def rewind(self, steps: int) -> bool:
        """Forget all but the first `steps` steps, to go on from there.

        Returns:
            Whether they are here and end with a shard; if not, all steps were forgotten.
        """
        self._buffer, self._size = [], 0
        shards, held = self._manifest.shards, 0
        keep = 0
        while keep < len(shards) and held < steps:
            held += shards[keep].steps
            keep += 1
        kept = shards[:keep] if held == steps else ()
        used = max((shard.segment for shard in kept), default=-1)
        self._change(shards=kept, segments=self._manifest.segments[: used + 1])
        for shard in shards[len(kept) :]:
            shard.path.unlink()
        return held == steps

    def finish(
        self,
        binding: Binding,
        recipe: Recipe | None = None,
        training: Mapping[str, Tensor] | None = None,
        dropout: Mapping[str, float] | None = None,
    ) -> None:
        """Make it a store.

        Args:
            binding: What it was made from.
            recipe: How the training went, where its every step was recorded.
            training: The adapter at its `start` and `end` `[d]`, and where it did not begin with
                the optimiser's first step, Adam's `moments` `[2, d]` and the steps `before`.
            dropout: What was dropped out while it was recorded.

        Raises:
            StoreError: Nothing was recorded.
        """
        self.flush()
        if not self._manifest.shards:
            raise StoreError(
                f"the recording in {self.folder} was to be finished",
                "no batch was recorded",
                "Put `with recorder.batch(ids):` around each forward and backward pass",
            )
        seal = None
        if training is not None:
            whole = {name: t.detach().cpu().contiguous() for name, t in training.items()}
            with atomic_file(self.folder / TRAINING) as temporary:
                save_file(whole, temporary)
            seal = digest(whole)
        about = {"recipe": recipe, "training_sha256": seal, "dropout": dict(dropout or {})}
        self._change(binding=binding, **about)

    def close(self) -> None:
        """Let go of the store; what is buffered is lost."""
        self._buffer = []
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _change(self, **changes: Any) -> None:
        self._manifest = replace(self._manifest, **changes)
        self._manifest.write(self.folder)


def projection_path(folder: Path, segment: int) -> Path:
    """The file of a store's `segment`-th projection."""
    return folder / f"projection-{segment:03d}.safetensors"
