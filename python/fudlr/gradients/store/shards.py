"""One shard of a store: whole steps in a safetensors file that says by itself what it holds.

Written here rather than by the safetensors library, which puts a header's entries in an order that
changes from run to run: equal shards are equal files. Any safetensors reader opens them.

A row is stored as float32, bfloat16, or int8 with a scale for each row and run of 128 columns: the
modules of a LoRA model have gradients whose sizes span orders, and one scale a row loses the
smallest (relative error .96 on a small Llama's; .0125 with a scale every 128 columns).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import zlib
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr.common.digest import canonical_json, tensor_bytes
from fudlr.common.errors import StoreError
from fudlr.common.files import atomic_file
from fudlr_ext.ops.record import encode_rows

VERSION = 2
SHARDS = f"rows-{6 * '[0-9]'}.safetensors"
"""Pattern of a shard's name."""
SCALE_BLOCK = 128
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_TAGS = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32",
         torch.bfloat16: "BF16", torch.int8: "I8"}  # fmt: skip
_ALIGN = 64  # bytes: the data begins at a cache line
_WINDOW = 8 * 2**20
TABLE = ("ids", "counts", "epochs", "rates", "shares")
"""Tensors that opening reads; the others are the body."""


@dataclass(frozen=True)
class Step:
    """One batch.

    Attributes:
        ids: The samples `[b]`.
        rows: Their sketches `[b, p]`, as stored.
        scales: Of int8 rows, `[b, ⌈p/128⌉]`.
        shares: u `[b]`: the step's gradient was Σ u_i g_i; 1/b each for a mean.
        mean: Σ u_i g_i in full space `[d]`.
        rate: The optimiser's learning rate.
        epoch: From 1.
        segment: Which of the store's projections made the rows.
        own: Of which of the samples rows and scales are here.
    """

    ids: Tensor
    rows: Tensor
    scales: Tensor | None
    shares: Tensor
    mean: Tensor
    rate: float = 0.0
    epoch: int = 1
    segment: int = 0
    own: slice = field(default_factory=lambda: slice(None))


def row_bytes(dim: int, dtype: str) -> int:
    """Bytes of a row on disk, its scales included and its id not."""
    scales = 4 * -(-dim // SCALE_BLOCK) if dtype == "int8" else 0
    return dim * DTYPES[dtype].itemsize + scales


def encode(rows: Tensor, dtype: str) -> tuple[Tensor, Tensor | None]:
    """`rows` `[b, p]` as stored, and their scales `[b, s]` for int8.

    Int8 rounds x / scale to the nearest integer with scale = max|x| / 127, so that each number is
    off by at most half a scale, 0.4% of the largest in its block.
    """
    if dtype != "int8":
        return rows.to(DTYPES[dtype]), None
    return encode_rows(rows.float())


def decode(rows: Tensor, scales: Tensor | None) -> Tensor:
    """Stored `rows` `[b, p]` as float32."""
    if scales is None:
        return rows.float()
    factors = scales.repeat_interleave(SCALE_BLOCK, dim=1)[:, : rows.shape[1]]
    return rows.float().mul_(factors)


@dataclass(frozen=True)
class Shard:
    """A shard on disk, as the manifest has it: its file begins with all of that but the folder.

    Attributes:
        folder: The store.
        course: Digest of what its store was recorded from.
        sequence: Its place in the store, from 0.
        segment: Which of the store's projections made the rows.
        dim, d: Numbers in a row and in a mean gradient.
        dtype: Of the rows; see `DTYPES`.
        rows, steps: How many.
        table_sha256, body_crc32: Checksums.
    """

    folder: Path
    course: str
    sequence: int
    segment: int
    dim: int
    d: int
    dtype: str
    rows: int
    steps: int
    table_sha256: str
    body_crc32: int

    @property
    def path(self) -> Path:
        """Its file."""
        return self.folder / f"rows-{self.sequence:06d}.safetensors"

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + max(end for *_, end in self._layout.values())

    def entry(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"name": self.path.name, "bytes": self.size, **self._facts}

    @property
    def _facts(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)[1:]}

    @cached_property
    def _layout(self) -> dict[str, tuple[torch.dtype, tuple[int, ...], int, int]]:
        """Type, shape, first and last byte of the tensors, in the order in which they lie."""
        m, s = self.rows, self.steps
        tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "ids": (torch.int64, (m,)),
            "counts": (torch.int64, (s,)),
            "epochs": (torch.int64, (s,)),
            "rates": (torch.float64, (s,)),
            "shares": (torch.float32, (m,)),
            "means": (torch.float32, (s, self.d)),
        }
        if self.dtype == "int8":
            tensors["scales"] = (torch.float32, (m, -(-self.dim // SCALE_BLOCK)))
        tensors["rows"] = (DTYPES[self.dtype], (m, self.dim))
        out, end = {}, 0
        for name, (dtype, shape) in tensors.items():
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            out[name] = (dtype, shape, begin, end)
        return out

    @cached_property
    def header(self) -> bytes:
        """The file's beginning, one text for equal facts, padded so that the data is aligned."""
        facts = canonical_json({"version": VERSION, **self._facts})
        seal = hashlib.sha256(facts.encode()).hexdigest()
        tensors = {
            name: {"dtype": _TAGS[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            for name, (dtype, shape, begin, end) in self._layout.items()
        }
        whole = {"__metadata__": {"fudlr": facts, "sha256": seal}, **tensors}
        text = json.dumps(whole, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % _ALIGN)
        return len(text).to_bytes(8, "little") + text

    def check_header(self) -> None:
        """Raise StoreError where the file's size or beginning is not what it should be."""
        with open_regular(self.path) as file:
            size, found = os.fstat(file.fileno()).st_size, file.read(len(self.header))
        if not self.header.startswith(found):
            raise refuse(
                self.path,
                "is not the one in the manifest: corrupted, doubled, renamed or another store's",
            )
        if size != self.size:
            kind = "truncated" if size < self.size else "corrupted"
            raise refuse(self.path, f"is {kind}: {size} bytes where {self.size} were written")

    def table(self) -> dict[str, Tensor]:
        """Its `TABLE`, or StoreError where that does not match its checksum."""
        found = {name: self.read(name) for name in TABLE}
        if _sha256(found) != self.table_sha256:
            raise refuse(self.path, "is corrupted: its sample ids do not match their checksum")
        return found

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor, copied from the file.

        A mapped page behind the end of a file that somebody else cuts short would end the process.

        Raises:
            StoreError: The file is gone or has changed its size.
        """
        dtype, (count, *tail), begin, _ = self._layout[name]
        out = torch.empty((count if stop is None else stop) - start, *tail, dtype=dtype)
        if not out.numel():
            return out
        raw = out.view(-1).view(torch.uint8).numpy().data
        with open_regular(self.path) as file:
            file.seek(len(self.header) + begin + start * math.prod(tail) * dtype.itemsize)
            if os.fstat(file.fileno()).st_size != self.size or file.readinto(raw) != len(raw):
                raise refuse(self.path, "has changed its size since the store was opened")
        return out

    def check(self) -> None:
        """Read the whole body; raise StoreError where it does not match its checksum."""
        found = 0
        for name, (dtype, (count, *tail), *_) in self._layout.items():
            if name not in TABLE:
                some = max(1, _WINDOW // max(1, math.prod(tail) * dtype.itemsize))
                for start in range(0, count, some):
                    piece = self.read(name, start, min(start + some, count))
                    found = zlib.crc32(tensor_bytes(piece), found)
        self._compare(found)

    def load(self) -> dict[str, Tensor]:
        """The whole body, or StoreError where it does not match its checksum."""
        body = {name: self.read(name) for name in self._layout if name not in TABLE}
        found = 0
        for tensor in body.values():
            found = zlib.crc32(tensor_bytes(tensor), found)
        self._compare(found)
        return body

    def _compare(self, body_crc32: int) -> None:
        if body_crc32 != self.body_crc32:
            raise refuse(self.path, "is corrupted: its rows do not match their checksum")


def write_shard(folder: Path, facts: dict[str, Any], steps: list[Step]) -> Shard:
    """Write whole `steps` as one shard: under a temporary name, flushed, renamed.

    A process killed at any moment leaves the whole shard or none under its name. `facts` are its
    `course`, `sequence`, `segment`, `dim`, `d` and `dtype`; rows are encoded.
    """
    tensors: dict[str, Tensor] = {
        "ids": torch.cat([step.ids for step in steps]),
        "counts": torch.tensor([len(step.ids) for step in steps]),
        "epochs": torch.tensor([step.epoch for step in steps]),
        "rates": torch.tensor([step.rate for step in steps], dtype=torch.float64),
        "shares": torch.cat([step.shares for step in steps]).float(),
    }
    parts = ([step.mean.float() for step in steps], [step.scales for step in steps],
             [step.rows for step in steps])  # fmt: skip
    body = [tensor_bytes(each) for part in parts for each in part if each is not None]
    body_crc32 = 0
    for each in body:
        body_crc32 = zlib.crc32(each, body_crc32)
    facts = {**facts, "rows": len(tensors["ids"]), "steps": len(steps)}
    shard = Shard(folder, **facts, table_sha256=_sha256(tensors), body_crc32=body_crc32)
    with atomic_file(shard.path) as temporary, temporary.open("wb") as file:
        file.write(shard.header)
        for each in [*map(tensor_bytes, tensors.values()), *body]:
            file.write(each)
    return shard


def open_regular(path: Path) -> Any:
    """Open a file of a store for reading; a pipe or a device is refused, and not waited for."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise refuse(path, "is missing") from error
    except OSError as error:
        raise refuse(path, f"cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise refuse(path, "is no regular file")
    return os.fdopen(handle, "rb", buffering=0)


def refuse(path: Path, found: str) -> StoreError:
    """The error for one bad file of a store."""
    return StoreError(
        f"the store {path.parent} was to be read",
        f"{path.name} {found}",
        f"Restore the file from a copy; or remove the folder {path.parent.name} and record again: "
        "`fudlr record RUN`, or the training where it was recorded there",
    )


def _sha256(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in TABLE:
        found.update(tensor_bytes(tensors[name]))
    return found.hexdigest()
