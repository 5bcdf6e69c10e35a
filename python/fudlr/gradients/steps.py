"""A training as it went: every batch's per-sample gradients where the parameters were then.

FOLDER/step-00001.safetensors   of the first batch: `samples` [b], which of the training samples;
                                `rows` [b, d], their gradients; `slope` [d], the rows' exact mean

One file a batch, n · d numbers an epoch, written as training goes on. The slope is kept beside the
rows, so that the way can be gone again exactly whatever the rows were rounded to.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fudlr.common.errors import DataError, UsageError
from fudlr.common.files import atomic_file

FOLDER = "trajectory"
"""Name of the folder in a run's."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Step:
    """One batch of a training.

    Attributes:
        samples: Which of the n training samples, int64 `[b]`.
        rows: Their gradients ∇ℓ_i where the parameters were, `[b, d]`.
        slope: The rows' mean before they were rounded, `[d]`.
    """

    samples: Tensor
    rows: Tensor
    slope: Tensor


def path_of(folder: Path, step: int) -> Path:
    """The file of batch `step`, from 1."""
    return folder / f"step-{step:05d}.safetensors"


class Steps:
    """What is kept of the batches in a folder, in their order; one at a time in memory.

    Args:
        folder: Where they lie.
        count: Batches that the training had.

    Raises:
        DataError: Some are missing.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count = folder, count
        missing = [t for t in range(1, count + 1) if not path_of(folder, t).is_file()]
        if missing:
            raise DataError(
                f"the {count} batches of a training were to be read from {folder}",
                f"{len(missing)} of them are missing, batch {missing[0]} the first",
                "Restore them from a copy, or train again with record.trajectory",
            )

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Step]:
        return map(self.read, range(1, self._count + 1))

    def slope(self, step: int) -> Tensor:
        """The mean gradient of batch `step` `[d]`, without its rows."""
        return self._tensors(step, "slope")[0]

    def read(self, step: int) -> Step:
        """Batch `step`, from 1."""
        return Step(*self._tensors(step, "samples", "rows", "slope"))

    def _tensors(self, step: int, *names: str) -> list[Tensor]:
        path = path_of(self._folder, step)
        try:
            with safe_open(path, "pt") as file:
                return [file.get_tensor(name) for name in names]
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"a batch of a training was to be read from {path}",
                f"the file is damaged ({error})",
                "Restore it from a copy, or train again with record.trajectory",
            ) from error


class StepWriter:
    """Keeps the batches of one training.

    Args:
        folder: Where.
        dtype: Of the rows, a name in `DTYPES`.
    """

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        self.folder, self._dtype = folder, DTYPES[dtype]
        self.key = ""

    def check_room(self, rows: int, d: int) -> None:
        """Refuse before training what the disk cannot hold: `rows` of `d` numbers in all.

        Raises:
            UsageError: There is less room; what an earlier try left there counts as room.
        """
        place = next(each for each in (self.folder, *self.folder.parents) if each.exists())
        held = sum(path.stat().st_size for path in self.folder.glob("step-*.safetensors"))
        needed, free = rows * d * self._dtype.itemsize, shutil.disk_usage(place).free + held
        if needed > free:
            raise UsageError(
                f"the gradients of {rows:,} samples, {d:,} numbers each, were to be kept in "
                f"{self.folder} (record.trajectory)",
                f"that is {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there",
                "Make room, set record.trajectory to bfloat16, or train without it",
            )

    def resume(self, done: int, key: str) -> bool:
        """Whether the first `done` batches of the training `key` are here, so that it may go on.

        Files that do not belong to them are deleted.
        """
        self.key = f"{key} {self._dtype}"
        held = all(self._key(path_of(self.folder, t)) == self.key for t in range(1, done + 1))
        kept = {path_of(self.folder, t) for t in range(1, done + 1)} if held else set()
        for path in self.folder.glob("step-*.safetensors"):
            if path not in kept:
                path.unlink()
        return held

    def write(self, step: int, samples: Tensor, rows: Tensor, slope: Tensor) -> None:
        """Keep batch `step`, whole or not at all."""
        tensors = {"samples": samples, "rows": rows.to(self._dtype), "slope": slope}
        with atomic_file(path_of(self.folder, step)) as temporary:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                temporary,
                {"training": self.key},
            )

    @staticmethod
    def _key(path: Path) -> str | None:
        try:
            with safe_open(path, "pt") as file:
                return (file.metadata() or {}).get("training")
        except (SafetensorError, OSError):
            return None
