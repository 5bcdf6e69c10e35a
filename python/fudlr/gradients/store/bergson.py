"""bergson's gradient index: one flat file of rows and an `info.json`, read and written.

    gradients.bin  [num_grads, Σ sizes], row-major, modules in the order of `grad_sizes`
    info.json      num_grads, grad_sizes (module to columns), base_dtype, attribute_tokens

as bergson 2.5.1 has it (github.com/EleutherAI/bergson). Row i is example i. An index has
no checksum, and does not say which adapter or which data its rows are of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fudlr.common.digest import tensor_bytes
from fudlr.common.errors import DataError, StoreError
from fudlr.common.files import atomic_folder, write_json
from fudlr.common.reading import read_json
from fudlr.gradients.projection import Shapes
from fudlr.gradients.store.reader import WINDOW_BYTES, Store, Window
from fudlr.gradients.store.shards import decode, open_regular
from fudlr.gradients.store.stored import StoredRows

ROWS, INFO, IDS = "gradients.bin", "info.json", "ids.npy"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NEAR = 0.02
"""Relative difference up to which a row is a gradient that was rounded."""
ADAPTER = re.compile(r"(\.lora_\w+)\.[^.]+$")
REMEDY = (
    "Build the index with this adapter and data, unprojected and of mean losses (projection_dim 0, "
    "loss_reduction mean)"
)


class _Info(BaseModel):
    """What `info.json` says; other keys are left out."""

    model_config = ConfigDict(extra="ignore")

    num_grads: int
    grad_sizes: dict[str, int]
    base_dtype: str
    attribute_tokens: bool = False


def is_index(folder: Path) -> bool:
    """Whether `folder` looks like an index of bergson's."""
    return (folder / INFO).is_file() and (folder / ROWS).is_file()


class BergsonIndex:
    """An index as `StoredRows` reads a store.

    Attributes:
        n, dim, dtype: Rows, numbers in each, and their type.
        ids: Names of the rows `[n]`: 0 to n − 1, or the samples of the store that it was
            exported from.
        named: Whether the ids are those of samples.
        modules: Columns of each module, in their order.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open the index in `folder`; raise StoreError where it is none, or damaged."""
        self.folder = Path(folder)
        try:
            info = read_json(self.folder / INFO, _Info, "Build the index again")
        except DataError as error:
            raise self._refused(error.found) from error
        self.n, self.modules, self.dtype = info.num_grads, info.grad_sizes, info.base_dtype
        self.dim = sum(self.modules.values())
        if info.attribute_tokens:
            raise self._refused("its rows are of single tokens (attribute_tokens)")
        if self.dtype not in DTYPES or self.n < 1 or min([*self.modules.values(), 0]) < 0:
            raise self._refused(f"it has {self.n} rows × {self.dim} as {self.dtype}")
        self._row = self.dim * DTYPES[self.dtype].itemsize
        size = (self.folder / ROWS).stat().st_size if is_index(self.folder) else 0
        if size != self.n * self._row:
            raise self._refused(f"{ROWS} has {size} bytes where {self.n * self._row} belong")
        self.ids, self.named = torch.arange(self.n), (self.folder / IDS).is_file()
        if self.named:
            self.ids = torch.from_numpy(np.load(self.folder / IDS, allow_pickle=False))
            if self.ids.shape != (self.n,):
                raise self._refused(f"{IDS} has the shape {tuple(self.ids.shape)}")

    def _refused(self, found: str) -> StoreError:
        return StoreError(f"the bergson index {self.folder} was to be read", found, REMEDY)

    def windows(self, window_bytes: int = WINDOW_BYTES) -> Iterator[Window]:
        """The rows in their order, in windows of at most `window_bytes`."""
        some = max(1, window_bytes // self._row)
        for start in range(0, self.n, some):
            stop = min(start + some, self.n)
            yield Window(slice(start, stop), partial(self._read, start, stop))

    def _read(self, start: int, stop: int) -> tuple[Tensor, None]:
        """Rows copied from the file: a mapped page that is gone would end the process."""
        out = torch.empty(stop - start, self.dim, dtype=DTYPES[self.dtype])
        raw = out.view(-1).view(torch.uint8).numpy().data
        with open_regular(self.folder / ROWS) as file:
            file.seek(start * self._row)
            if file.readinto(raw) != len(raw):
                raise self._refused(f"{ROWS} was cut short")
        return out.float() if out.dtype == torch.float16 else out, None

    def places(self, ids: Tensor) -> Tensor:
        """Where the samples `ids` `[m]` lie; raise StoreError for one that is not here."""
        values, order = self.ids.sort()
        at = torch.searchsorted(values, ids).clamp(max=self.n - 1)
        if (absent := ids[values[at] != ids]).numel():
            found = f"{absent.numel()} of {len(ids)} samples are not in it, {int(absent[0])} first"
            raise self._refused(found)
        return order[at]

    def read(self, ids: Tensor) -> Tensor:
        """Rows of the samples `ids` as float32, `[m, dim]`."""
        at = self.places(ids).tolist()
        return torch.cat([self._read(each, each + 1)[0].float() for each in at])

    def columns(self, shapes: Shapes) -> Tensor:
        """Which column each number of a flat adapter is in, `[d]`.

        Args:
            shapes: The adapter's matrices, `Engine.shapes`; bergson calls their modules by the
                end of the same name.

        Raises:
            StoreError: The modules are not the adapter's, or of other sizes; the first is named.
        """
        starts = dict(zip(self.modules, np.cumsum([0, *self.modules.values()]), strict=False))
        parts, left = [], dict(self.modules)
        for name, shape in shapes.items():
            own = _module(name)
            match = [m for m in left if own.endswith(_module(m)) or _module(m).endswith(own)]
            if len(match) != 1:
                raise self._refused(f"another model's: it has no rows of {name}")
            if left[match[0]] != math.prod(shape):
                found = f"{left[match[0]]} columns for {name} of {shape[0]} × {shape[1]}"
                raise self._refused(f"another model's, or projected: it has {found}")
            first = int(starts[match[0]])
            parts.append(torch.arange(first, first + left.pop(match[0])))
        if left:
            raise self._refused(f"another model's: its rows are also of {next(iter(left))}")
        return torch.cat(parts)


def _module(name: str) -> str:
    """A LoRA matrix's module without its adapter's name, behind a dot: bergson writes that, and
    neither `base_model` nor `weight`."""
    return "." + ADAPTER.sub(r"\1", name.removesuffix(".weight"))


class IndexRows(StoredRows):
    """Rows of an index as gradients of a flat adapter.

    Args:
        index: Where the rows are.
        order: Sample ids `[n]`, as of `StoredRows`.
        columns: Of the adapter's numbers, `BergsonIndex.columns`.
    """

    def __init__(self, index: BergsonIndex, order: Tensor, columns: Tensor) -> None:
        super().__init__(index, order)
        self._columns, self._back = columns, columns.argsort()

    def _dots(self, vectors: Tensor) -> Tensor:
        return super()._dots(vectors[:, self._back])

    def _sum(self, weights: Tensor) -> Tensor:
        return super()._sum(weights)[:, self._columns]

    def _gram(self, vectors: Tensor, weights: Tensor | None) -> Tensor:
        return super()._gram(vectors[:, self._back], weights)[:, self._columns]

    def take(self, index: Tensor) -> Tensor:
        """The rows at `index` `[m]` as float32, `[m, d]`."""
        return super().take(index)[:, self._columns]


def compare(folder: Path, ids: Tensor, rows: Tensor, gradients: Tensor) -> None:
    """Raise StoreError unless `rows` `[m, d]` of the index in `folder` are the model's `gradients`
    of the samples `ids` `[m]`, up to rounding to 16 bits."""
    off = (rows - gradients).norm(dim=1)
    wrong = (off > NEAR * gradients.norm(dim=1)).nonzero()[:, 0]
    if wrong.numel():
        at = int(wrong[0])
        cosine = float(torch.cosine_similarity(rows[at], gradients[at], 0))
        size = float(rows[at].norm() / gradients[at].norm())
        raise StoreError(
            f"the bergson index {folder} was to be used",
            "it is another model's, adapter's or other data's: its row of sample "
            f"{int(ids[at])} has the cosine {cosine:.3f} with that sample's gradient, and "
            f"{size:.3g} times its size",
            REMEDY,
        )


def sketch_sizes(store: Store) -> Mapping[str, int]:
    """Columns that each kept matrix has in a store's rows, by module."""
    return {
        block.name.removesuffix(".weight"): block.sketch.stop - block.sketch.start
        for block in store.projection().blocks
    }


def write_index(store: Store, out: Path, dtype: str | None = None) -> None:
    """Write a store's last epoch as an index that bergson's `Attributor` opens.

    Args:
        store: Its rows go out by rising sample id, which `ids.npy` has.
        out: The index's folder.
        dtype: `float32` or `bfloat16`; by default the one that keeps the rows as they are.

    Raises:
        UsageError: `out` is there and is no earlier index.
    """
    kind = dtype or ("bfloat16" if store.dtype == "bfloat16" else "float32")
    order = store.ids.sort().values
    with atomic_folder(out, "index") as folder:
        width = store.dim * DTYPES[kind].itemsize
        with (folder / ROWS).open("wb") as file:
            file.truncate(width * store.n)
            for window in store.windows():
                rows = decode(*window.read()).to(DTYPES[kind])
                at = torch.searchsorted(order, store.ids[window.places]).tolist()
                for place, row in zip(at, rows, strict=True):
                    file.seek(width * place)
                    file.write(tensor_bytes(row))
        sizes = dict(sketch_sizes(store))
        about = {"num_items": store.n, "num_grads": store.n, "grad_sizes": sizes}
        write_json(folder / INFO, {"attribute_tokens": False, **about, "base_dtype": kind})
        np.save(folder / IDS, order.numpy())
        # What bergson's processor is read from: no projection of its own, no normaliser.
        write_json(folder / "processor_config.yaml", {"projection_dim": None})
        for name in ("normalizers", "hessians", "hessians_eigen"):
            torch.save({}, folder / f"{name}.pth")
