"""From the batches of a recording to a store's steps: when directions are chosen, and of what."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.config import RecordConfig
from fudlr.gradients.principal import PrincipalAccumulator
from fudlr.gradients.projection import Projection, Shapes, random_projection
from fudlr.gradients.store.shards import row_bytes
from fudlr.gradients.store.writer import StoreWriter

HELD_BYTES = 4 * 2**30
"""Most memory for the whole gradients that directions are chosen from."""
MOST_HELD = 4
"""Times `fit_samples` that are held at most while some matrix has no gradient yet, as A's have none
while B is 0."""
FALL = 0.02
"""Of the share of energy that was asked for: how far it may fall before directions are chosen
anew."""


@dataclass
class Taken:
    """One step before it is stored: as `shards.Step`, with rows whole `[b, d]` or sketched."""

    ids: Tensor
    rows: Tensor
    mean: Tensor
    shares: Tensor | None = None
    rate: float = 0.0
    epoch: int = 1


class StepRecorder:
    """Takes steps in their order, and stores their sketches.

    While `projection` is None it takes whole gradients: at the start, until there are enough to
    choose directions from; and at the start of each epoch, where they show how much of the energy
    the directions still keep, and are what they are chosen anew from if that is too little.

    Args:
        folder: The recording.
        course: See `StoreWriter`.
        shapes: The LoRA matrices, `Engine.shapes`.
        config: How rows are made.
        projection: A fitted projection to use throughout; otherwise directions are chosen here.
        shard_bytes: See `StoreWriter`; None for its default.
    """

    def __init__(
        self,
        folder: Path,
        course: str,
        shapes: Shapes,
        config: RecordConfig,
        *,
        projection: Projection | None = None,
    ) -> None:
        self.shapes, self._config = shapes, config
        d = sum(a * b for a, b in shapes.values())
        self.writer = StoreWriter(folder, course, d, config.dtype)
        self._fixed = projection or ready_projection(shapes, config)
        self.projection: Projection | None = None
        self._held: list[Taken] = []
        self.resume(self.writer.steps)

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self.writer.steps + len(self._held)

    @property
    def rows(self) -> int:
        """Samples in them."""
        return self.writer.rows + sum(len(step.ids) for step in self._held)

    def resume(self, steps: int) -> bool:
        """Go on after `steps` steps; whether they are here."""
        found = self.writer.rewind(steps)
        # The epoch of the last step: where the next one begins another, directions are looked at.
        self._held, self.epoch = [], self.writer.epoch
        self._use(self._fixed or self.writer.projection())
        return found

    def begin_epoch(self, epoch: int) -> None:
        """Say that the steps from now on are of `epoch`."""
        if epoch == self.epoch:
            return
        self._settle()
        self.epoch = epoch
        if self._fixed is None:
            self.projection = None

    def add(self, step: Taken) -> None:
        """Take a step, its rows whole where `projection` is None, else sketched."""
        step.epoch = self.epoch
        if self.projection is not None:
            self._store(step)
            return
        self._held.append(step)
        count = sum(len(each.ids) for each in self._held)
        check_held(count, sum(a * b for a, b in self.shapes.values()), self._config)
        if count >= self._config.fit_samples and not (
            count < MOST_HELD * self._config.fit_samples and self._silent()
        ):
            self._settle()

    def flush(self) -> None:
        """Bring all steps so far to disk, for a checkpoint of the training to go on from.

        Directions that are still to be chosen are chosen now, from what there is.
        """
        self._settle()
        self.writer.flush()

    def _silent(self) -> bool:
        """Whether some matrix has had no gradient at all, in no step so far."""
        if self.writer.steps:
            return False
        start = 0
        for a, b in self.shapes.values():
            if not any(bool(step.rows[:, start : start + a * b].any()) for step in self._held):
                return True
            start += a * b
        return False

    def _settle(self) -> None:
        """Decide on directions for the steps that are held, and store these."""
        if not self._held:
            return
        rows = torch.cat([step.rows for step in self._held])
        last = self.writer.projection()
        if last is None or last.energy_kept(rows) < _asked(self._config) - FALL:
            accumulator = PrincipalAccumulator(self.shapes)
            accumulator.add_rows(rows)
            last = fit(accumulator, self._config)
        self._use(last)
        held, self._held = self._held, []
        for step in held:
            step.rows = last.project(step.rows)
            self._store(step, whole=step is held[-1])

    def _use(self, projection: Projection | None) -> None:
        self.projection = projection
        if projection is not None:
            self.writer.use(projection)

    def _store(self, step: Taken, *, whole: bool = True) -> None:
        """Store a step; where not `whole`, the next one goes into its shard: those that were held
        are stored together or not at all, for a recording that goes on to hold them again."""
        more = {"shares": step.shares, "rate": step.rate, "epoch": step.epoch, "cut": whole}
        self.writer.append(step.ids, step.rows, step.mean, **more)  # type: ignore[arg-type]


def _asked(config: RecordConfig) -> float:
    """The share of energy below which directions are chosen anew; with `dims`, never."""
    return config.energy if config.dims is None else 0.0


def ready_projection(shapes: Shapes, config: RecordConfig) -> Projection | None:
    """A projection whose kind needs no gradients; None for principal directions."""
    if config.projection == "principal":
        return None
    assert config.dims is not None  # RecordConfig
    return random_projection(shapes, config.dims)


def fit(accumulator: PrincipalAccumulator, config: RecordConfig) -> Projection:
    """Principal directions, as many as the options ask for."""
    if config.dims is not None:
        return accumulator.fit(dims=config.dims)
    return accumulator.fit(energy=config.energy)


def fit_rows(shapes: Shapes, rows: Tensor, config: RecordConfig) -> Projection:
    """The projection for the options, fitted to flat gradients `rows` `[n, d]` where it must be."""
    accumulator = PrincipalAccumulator(shapes)
    accumulator.add_rows(rows)
    return ready_projection(shapes, config) or fit(accumulator, config)


def check_held(count: int, d: int, config: RecordConfig) -> None:
    """Raise where `count` whole gradients are more than may be held."""
    size = 4 * count * d
    if size > HELD_BYTES:
        raise UsageError(
            f"principal directions were to be fitted to {config.fit_samples} samples "
            "(record.fit_samples)",
            f"the gradients of {count} take {size / 2**30:.1f} GiB, and "
            f"{HELD_BYTES / 2**30:.1f} are meant for them",
            "Lower record.fit_samples or train.batch, or set record.projection to random",
        )


def check_room(folder: Path, rows: int, steps: int, d: int, config: RecordConfig) -> None:
    """Refuse before training what the disk cannot hold, by the largest share that rows may need.

    Raises:
        UsageError: There is less room; what an earlier try left there counts as room.
    """
    at = next(each for each in (folder, *folder.parents) if each.exists())
    held = sum(path.stat().st_size for path in folder.glob("rows-*.safetensors"))
    dim = min(d, math.ceil(LARGEST * d))
    needed = rows * row_bytes(dim, config.dtype) + 4 * steps * d
    free = shutil.disk_usage(at).free + held
    if needed > free:
        raise UsageError(
            f"sketched gradients of {rows:,} samples were to be recorded in {folder}",
            f"they may take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there",
            "Make room, lower record.energy, or record the last epoch alone (record.epochs=last)",
        )


LARGEST = 0.25
"""Of d, a share that rows hardly exceed: 15.7% keep .9 of the energy on the demo's model."""
