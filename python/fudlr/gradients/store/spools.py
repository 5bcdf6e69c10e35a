"""What each of several ranks records: a store of its own beside the one that is made, taken into it
by the first rank, step by step and as it is stored. So the store is the one that a single process
writes, and a rank that dies leaves its whole shards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fudlr.common import parallel
from fudlr.common.errors import StoreError, UsageError
from fudlr.common.files import remove_folder
from fudlr.common.parallel import Ranks, alone
from fudlr.config import RecordConfig
from fudlr.gradients.projection import Projection, Shapes
from fudlr.gradients.store.manifest import Binding, Recipe, read_manifest
from fudlr.gradients.store.reader import Store
from fudlr.gradients.store.shards import Step
from fudlr.gradients.store.steps import StepRecorder
from fudlr.gradients.store.writer import StoreWriter, projection_path
from fudlr_ext import Engine

UNBOUND = Binding(*["0" * 64] * 4)
"""Of a part, which is bound to nothing before it is taken in."""


def within(model: nn.Module | Engine) -> tuple[nn.Module | Engine, Ranks | None]:
    """The model in a `DistributedDataParallel`, whose hooks see the same backward pass, and the
    processes that it is trained by.

    Raises:
        UsageError: Its parameters are sharded.
    """
    weights = () if isinstance(model, Engine) else model.parameters()
    # Who shards parameters has imported what they are then; it takes half a second.
    sharded = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())
    if any(isinstance(weight, sharded) for weight in weights):
        raise UsageError(
            "a training was to be recorded",
            "the model's parameters are sharded over processes (FSDP or tensor parallelism)",
            "Train it in a DistributedDataParallel, its base quantised where it is large",
        )
    if not isinstance(model, DistributedDataParallel):
        return model, None
    return model.module, parallel.of_group(model.process_group)


def spool_of(folder: Path, rank: int) -> Path:
    """Where a rank records what goes into the store in `folder`."""
    return folder.with_name(f"{folder.name}.rank-{rank}")


@contextmanager
def spooling(folder: Path, ranks: Ranks, course: str, d: int, dtype: str) -> Iterator[StoreWriter]:
    """This rank's own part, empty at first."""
    own = spool_of(folder, ranks.rank)
    with alone():
        remove_folder(own, "store")
        with StoreWriter(own, course, d, dtype) as writer:
            yield writer


def clear(folder: Path) -> None:
    """Remove the parts that ranks left, of whatever number of them."""
    for left in folder.parent.glob(f"{folder.name}.rank-*"):
        remove_folder(left, "store")


def parts_of(folder: Path, course: str) -> list[Store]:
    """The ranks' parts of the store in `folder`, as far as they have whole shards."""
    found, rank = [], 0
    while (left := spool_of(folder, rank)).is_dir():
        manifest = read_manifest(left)
        if manifest is not None and manifest.course == course and manifest.shards:
            part = Store(left, manifest, UNBOUND)
            part.kept = False  # each row is read once
            found.append(part)
        rank += 1
    return found


def take_batches(writer: StoreWriter, firsts: Sequence[int]) -> None:
    """Take the batches that ranks recorded one by one into `writer`, from where it is and as far as
    none is missing; `firsts` are their first samples."""
    places = {
        first: (store, step)
        for store in parts_of(writer.folder, writer.course)
        for step, first in enumerate(store.first_ids().tolist())
    }
    for first in firsts[writer.steps :]:
        if first not in places:
            break
        store, step = places[first]
        writer.put(store.step(step))
    writer.flush()
    clear(writer.folder)


class RankRecorder(StepRecorder):
    """One of several ranks' recorder of a training: its own samples of every step are in a part of
    its own until `flush`, the steps so far in the first rank's `folder`. All ranks call its methods
    in the same order.
    """

    least = 0

    def __init__(
        self,
        folder: Path,
        course: str,
        shapes: Shapes,
        config: RecordConfig,
        projection: Projection | None,
        *,
        ranks: Ranks,
    ) -> None:
        self._whole, self._out = None, folder
        with ranks.together(), alone():
            if ranks.first:
                clear(folder)
                d = sum(a * b for a, b in shapes.values())
                self._whole = StoreWriter(folder, course, d, config.dtype)
        self._taken = ranks.told(self._whole.steps if self._whole else 0)
        with alone():
            super().__init__(
                spool_of(folder, ranks.rank), course, shapes, config, projection, ranks=ranks
            )

    @property
    def steps(self) -> int:
        """Steps so far, all ranks' together."""
        return self._taken + super().steps

    @property
    def rows(self) -> int:
        """Samples in them; a collective."""
        return self._taken_rows + sum(self.ranks.gather(super().rows))

    def rewind(self, steps: int) -> bool:
        """Forget all but the first `steps` steps; whether they are here."""
        about: list[Any] = []
        with self.ranks.together(), alone():
            super().rewind(0)
            if self._whole:
                found = self._whole.rewind(steps)
                about = [found, self._whole.epoch, self._whole.segments, self._whole.rows]
        found, self._before, segments, self._taken_rows = self.ranks.told(about)
        path = projection_path(self._out, segments - 1)
        self._last = Projection.load(path) if segments else None
        self._taken = steps if found else 0
        return bool(found)

    @property
    def epoch(self) -> int:
        """Of the last step that is in a shard; 0 before any."""
        return int(self._before)

    def last_projection(self) -> Projection | None:
        """The last of the projections that were used so far."""
        return super().last_projection() or self._last

    def use(self, projection: Projection) -> None:
        """Rows from now on are sketches under `projection`."""
        with self.ranks.together(), alone():
            super().use(projection)

    def append(self, ids: Tensor, rows: Tensor, mean: Tensor | None = None, **options: Any) -> None:
        """Add this rank's samples of a step, with the mean gradient of all ranks'."""
        with self.ranks.together(), alone():
            super().append(ids, rows, mean if self.ranks.first else None, **options)

    def flush(self) -> None:
        """Bring all steps so far to disk, into one store."""
        self._settle()
        with self.ranks.together(), alone():
            StoreWriter.flush(self)
        with self.ranks.together(), alone():
            if self._whole:
                take_steps(self._whole, self.ranks.size)
        self._taken = self.steps
        self._taken_rows = self.ranks.told(self._whole.rows if self._whole else 0)
        with self.ranks.together(), alone():
            shards = self._manifest.shards
            self._change(shards=())
            for shard in shards:
                shard.path.unlink()

    def finish(
        self,
        binding: Binding,
        recipe: Recipe | None = None,
        training: Mapping[str, Tensor] | None = None,
        dropout: Mapping[str, float] | None = None,
    ) -> None:
        """Make the ranks' parts one store."""
        self.flush()
        with self.ranks.together(), alone():
            if self._whole:
                self._whole.finish(binding, recipe, training, dropout)

    def close(self) -> None:
        """Let go of the store; what is buffered is lost."""
        super().close()
        if self._whole:
            self._whole.close()


def take_steps(writer: StoreWriter, count: int) -> None:
    """Take the steps of which each of `count` ranks recorded its own samples into `writer`, the
    samples in the order of the ranks; the mean gradients are the first rank's."""
    stores = parts_of(writer.folder, writer.course)
    steps = {store.steps for store in stores}
    if stores and (len(stores) < count or len(steps) > 1):
        raise StoreError(
            f"what {count} ranks recorded was to become the store {writer.folder}",
            f"{len(stores)} of them have steps, and not the same number",
            "Let every rank record every step of the optimiser, with no samples where it has none",
        )
    projections: dict[int, Projection] = {}
    for number in range(max(steps, default=0)):
        first, *others = (store.step(number) for store in stores)
        if first.segment not in projections:
            projections[first.segment] = stores[0].projection(first.segment)
        writer.use(projections[first.segment])
        writer.put(_joined([first, *others]))
    writer.flush()


def _joined(steps: Sequence[Step]) -> Step:
    scales = [step.scales for step in steps if step.scales is not None]
    return replace(
        steps[0],
        ids=torch.cat([step.ids for step in steps]),
        rows=torch.cat([step.rows for step in steps]),
        scales=torch.cat(scales) if scales else None,
        shares=torch.cat([step.shares for step in steps]),
    )
