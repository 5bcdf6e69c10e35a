"""From the batches of a recording to a store's steps: when directions are chosen, and of what."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr.common.errors import StoreError, UsageError
from fudlr.common.parallel import ALONE, Ranks
from fudlr.config import RecordConfig
from fudlr.gradients.projection import PrincipalAccumulator, Projection, Shapes, energy_of
from fudlr.gradients.store.shards import row_bytes
from fudlr.gradients.store.writer import StoreWriter

HELD_BYTES = 4 * 2**30
"""Most memory for the whole gradients that directions are chosen from."""
FIT_SAMPLES = 256
"""Whose gradients directions are chosen from, at least, where half of `HELD_BYTES` holds them."""
LOOKED = 64
"""Samples at the start of an epoch, at least, that show how much directions still keep."""
MOST_HELD = 4
"""Times as many that are held at most while some matrix has no gradient yet, as A's have none
while B is 0."""
FALL = 0.04
"""Of the share of energy that was asked for: how far it may fall before directions are chosen anew.
Those of 256 samples keep .87 to .88 of others' where .9 is asked for, however new they are."""
LARGEST = 0.25
"""Of d, a share that rows hardly exceed: 15.7% keep .9 of the energy on the demo's model."""


class StepRecorder(StoreWriter):
    """Takes the steps of a training in their order, and stores their sketches.

    While `projection` is None it takes whole gradients: at the start, until there are enough to
    choose directions from; and at the start of each epoch, where some show how much of the energy
    the directions still keep, and if that is too little more are taken to choose them anew from. A
    `projection` that is given is used throughout. Of several `ranks` each takes its own samples of
    every step, and the directions are those of all.
    """

    def __init__(
        self,
        folder: Path,
        course: str,
        shapes: Shapes,
        config: RecordConfig,
        projection: Projection | None = None,
        *,
        ranks: Ranks = ALONE,
    ) -> None:
        self.d, self.ranks = sum(a * b for a, b in shapes.values()), ranks
        self.shapes, self._config, self._fixed = shapes, config, projection
        self._held: list[dict[str, Any]] = []
        self._former: Projection | None = None
        self._looked = False
        super().__init__(folder, course, self.d if ranks.first else 0, config.dtype)
        self.resume(self.steps)

    @property
    def steps(self) -> int:
        """Steps so far."""
        return super().steps + len(self._held)

    @property
    def rows(self) -> int:
        """Samples in them."""
        return super().rows + sum(len(step["ids"]) for step in self._held)

    def resume(self, steps: int) -> bool:
        """Go on after `steps` steps; whether they are here."""
        found = self.rewind(steps)
        # The epoch of the last step: where the next one begins another, directions are looked at.
        self._held, self._epoch = [], self.epoch
        self._aim(self._fixed or self.last_projection())
        return found

    def begin_epoch(self, epoch: int) -> None:
        """Say that the steps from now on are of `epoch`."""
        if epoch != self._epoch:
            self._settle()
            self._epoch, self._former, self._looked = epoch, self.projection, False
            self._aim(self._fixed)

    def add(
        self, ids: Tensor, rows: Tensor, mean: Tensor, shares: Tensor | None = None, rate: float = 0
    ) -> None:
        """Take a step as `append` does, its rows whole where `projection` is None."""
        step: dict[str, Any] = {"mean": mean, "shares": shares, "rate": rate, "epoch": self._epoch}
        if self.projection is not None:
            self.append(ids, rows, **step)
            return
        self._held.append({"ids": ids, "rows": rows, **step})
        count = sum(len(each["ids"]) for each in self._held)
        check_held(count, self.d)
        count = sum(self.ranks.gather(count))
        enough = fit_samples(self.d)
        if count >= enough and not (count < MOST_HELD * enough and self._silent()):
            self._settle()
        elif not self._looked and count >= LOOKED:
            self._looked = True
            self._keep()

    def flush(self) -> None:
        """Bring all steps so far to disk, for a checkpoint of the training to go on from.

        Directions that are still to be chosen are chosen now, from what there is.
        """
        self._settle()
        super().flush()

    def _silent(self) -> bool:
        """Whether some matrix has had no gradient at all, in no step so far."""
        if super().steps:
            return False
        sizes = [a * b for a, b in self.shapes.values()]
        parts = zip(*(step["rows"].split(sizes, 1) for step in self._held), strict=True)
        here = [any(bool(part.any()) for part in same) for same in parts]
        return not all(map(any, zip(*self.ranks.gather(here), strict=True)))

    def _settle(self) -> None:
        """Decide on directions for the steps that are held, and store these."""
        if not self._held or self._keep():
            return
        moments = PrincipalAccumulator(self.shapes)
        for step in self._held:
            if len(step["rows"]):
                moments.add_rows(step["rows"])
        moments.pool(self.ranks)
        projection = moments.fit(self._config.energy)
        self._store(projection, [projection.project(step["rows"]) for step in self._held])

    def _keep(self) -> bool:
        """Store the steps that are held under the directions so far, if these keep enough of them;
        whether they do."""
        if self._former is None:
            return False
        sketches = [self._former.project(step["rows"]) for step in self._held]
        whole = [step["rows"] for step in self._held]
        energies = [sum(map(energy_of, rows)) for rows in (sketches, whole)]
        sums = torch.tensor(energies, dtype=torch.float64)
        self.ranks.sum(sums)
        kept = float(sums[0]) >= (self._config.energy - FALL) * float(sums[1])
        if kept:
            self._store(self._former, sketches)
        return kept

    def _store(self, projection: Projection, sketches: list[Tensor]) -> None:
        """Store the steps that are held, and go on with the projection of their sketches."""
        held, self._held = self._held, []
        self._aim(projection)
        for step, rows in zip(held, sketches, strict=True):
            # Stored together or not at all, for a recording that goes on to hold them again.
            self.append(**{**step, "rows": rows}, cut=step is held[-1])

    def _aim(self, projection: Projection | None) -> None:
        self.projection = projection
        if projection is not None:
            self.use(projection)


def fit_samples(d: int) -> int:
    """Samples whose whole gradients [d] are enough to choose directions from."""
    return max(1, min(FIT_SAMPLES, HELD_BYTES // (8 * d)))


def check_held(count: int, d: int) -> None:
    """Raise where `count` whole gradients are more than may be held."""
    size = 4 * count * d
    if size > HELD_BYTES:
        raise UsageError(
            "principal directions were to be chosen from whole gradients",
            f"those of {count} samples take {size / 2**30:.1f} GiB, and "
            f"{HELD_BYTES / 2**30:.1f} are meant for them",
            "Lower train.batch",
        )


def check_room(folder: Path, rows: int, steps: int, d: int, config: RecordConfig) -> None:
    """Refuse before training what the disk cannot hold, by the largest share that rows may need;
    what an earlier try left there counts as room."""
    at = next(each for each in (folder, *folder.parents) if each.exists())
    held = sum(path.stat().st_size for path in folder.glob("rows-*.safetensors"))
    needed = rows * row_bytes(math.ceil(LARGEST * d), config.dtype) + 4 * steps * d
    free = shutil.disk_usage(at).free + held
    if needed > free:
        raise StoreError(
            f"sketched gradients of {rows:,} samples were to be recorded",
            f"they may take {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free",
            "Make room, lower record.energy, or record the last epoch alone (record.epochs=last)",
        )
