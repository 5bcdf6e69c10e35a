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
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr.common.digest import canonical_json, tensor_bytes
from fudlr.common.errors import StoreError
from fudlr.common.files import atomic_file

VERSION = 2
NAME = re.compile(r"rows-(\d{6})\.safetensors")
SCALE_BLOCK = 128
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_TAGS = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32",
         torch.bfloat16: "BF16", torch.int8: "I8"}  # fmt: skip
_ALIGN = 64  # bytes: the data begins at a cache line
_MAX_HEADER = 100 * 2**20  # the safetensors format's own limit
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
    """

    ids: Tensor
    rows: Tensor
    scales: Tensor | None
    shares: Tensor
    mean: Tensor
    rate: float = 0.0
    epoch: int = 1
    segment: int = 0


@dataclass(frozen=True)
class Header:
    """What a shard says of itself.

    Attributes:
        course: Digest of what its store was recorded from.
        sequence: Its place in the store, from 0.
        segment: Which of the store's projections made the rows.
        dim, d: Numbers in a row and in a mean gradient.
        dtype: Of the rows; see `DTYPES`.
        rows, steps: How many.
        table_sha256, body_crc32: Checksums.
    """

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

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Names, types and shapes of the tensors in the order in which they lie."""
        m, s = self.rows, self.steps
        out: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "ids": (torch.int64, (m,)),
            "counts": (torch.int64, (s,)),
            "epochs": (torch.int64, (s,)),
            "rates": (torch.float64, (s,)),
            "shares": (torch.float32, (m,)),
            "means": (torch.float32, (s, self.d)),
        }
        if self.dtype == "int8":
            out["scales"] = (torch.float32, (m, -(-self.dim // SCALE_BLOCK)))
        return {**out, "rows": (DTYPES[self.dtype], (m, self.dim))}

    def layout(self) -> dict[str, Any]:
        """The header's entries for the tensors, as safetensors has them."""
        out: dict[str, Any] = {}
        end = 0
        for name, (dtype, shape) in self.tensors().items():
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            offsets = [begin, end]
            out[name] = {"dtype": _TAGS[dtype], "shape": list(shape), "data_offsets": offsets}
        return out


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
    wide = torch.nn.functional.pad(rows.float(), (0, -rows.shape[1] % SCALE_BLOCK))
    wide = wide.view(len(rows), -1, SCALE_BLOCK)
    scales = wide.abs().amax(dim=2) / 127
    # A block of zeros has scale 0; dividing by 1 instead keeps its zeros.
    steps = torch.where(scales > 0, scales, torch.ones_like(scales))
    codes = (wide / steps[..., None]).round_().clamp_(-127, 127).to(torch.int8)
    return codes.flatten(1)[:, : rows.shape[1]].contiguous(), scales


def decode(rows: Tensor, scales: Tensor | None) -> Tensor:
    """Stored `rows` `[b, p]` as float32."""
    if scales is None:
        return rows.float()
    factors = scales.repeat_interleave(SCALE_BLOCK, dim=1)[:, : rows.shape[1]]
    return rows.float().mul_(factors)


@dataclass(frozen=True)
class Shard:
    """A shard on disk whose header was checked."""

    path: Path
    header: Header
    begin: int
    """Where its tensors start in the file."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.begin + int(self.header.layout()["rows"]["data_offsets"][1])

    def entry(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"name": self.path.name, "bytes": self.size, **asdict(self.header)}

    def table(self) -> dict[str, Tensor]:
        """Its `TABLE`, checked against its checksum.

        Raises:
            StoreError: It differs.
        """
        found = {name: self.read(name) for name in TABLE}
        if _sha256(tensor_bytes(found[name]) for name in TABLE) != self.header.table_sha256:
            raise refuse(self.path, "is corrupted: its sample ids do not match their checksum")
        return found

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor, copied from the file.

        A mapped page behind the end of a file that somebody else cuts short would end the process.

        Raises:
            StoreError: The file is gone or has changed its size.
        """
        dtype, (count, *tail) = self.header.tensors()[name]
        stop = count if stop is None else stop
        width = math.prod(tail)
        out = torch.empty(stop - start, *tail, dtype=dtype)
        if not out.numel():
            return out
        at = self.begin + self.header.layout()[name]["data_offsets"][0]
        raw = out.view(-1).view(torch.uint8).numpy().data
        with open_regular(self.path) as file:
            file.seek(at + start * width * dtype.itemsize)
            if os.fstat(file.fileno()).st_size != self.size or file.readinto(raw) != len(raw):
                raise refuse(self.path, "has changed its size since the store was opened")
        return out

    def check(self) -> None:
        """Read the whole body and compare it with its checksum.

        Raises:
            StoreError: It differs.
        """
        found = 0
        for name in self.header.tensors():
            if name not in TABLE:
                for piece in self._pieces(name):
                    found = zlib.crc32(tensor_bytes(piece), found)
        if found != self.header.body_crc32:
            raise refuse(self.path, "is corrupted: its rows do not match their checksum")

    def _pieces(self, name: str) -> Iterator[Tensor]:
        dtype, (count, *tail) = self.header.tensors()[name]
        step = max(1, _WINDOW // max(1, math.prod(tail) * dtype.itemsize))
        for start in range(0, count, step):
            yield self.read(name, start, min(start + step, count))


def write_shard(folder: Path, header: dict[str, Any], steps: list[Step]) -> Shard:
    """Write whole `steps` as one shard: under a temporary name, flushed, renamed.

    A process killed at any moment leaves the whole shard or none under its name.

    Args:
        folder: The store.
        header: `course`, `sequence`, `segment`, `dim`, `d` and `dtype` of it.
        steps: At least one, their rows encoded.
    """
    tensors: dict[str, Tensor] = {
        "ids": torch.cat([step.ids for step in steps]),
        "counts": torch.tensor([len(step.ids) for step in steps]),
        "epochs": torch.tensor([step.epoch for step in steps]),
        "rates": torch.tensor([step.rate for step in steps], dtype=torch.float64),
        "shares": torch.cat([step.shares for step in steps]).float(),
        "means": torch.stack([step.mean for step in steps]).float(),
    }
    if steps[0].scales is not None:
        tensors["scales"] = torch.cat([step.scales for step in steps if step.scales is not None])
    tensors["rows"] = torch.cat([step.rows for step in steps])
    body = 0
    for name in [name for name in tensors if name not in TABLE]:
        body = zlib.crc32(tensor_bytes(tensors[name]), body)
    table = _sha256(tensor_bytes(tensors[name]) for name in TABLE)
    made = Header(
        **header, rows=len(tensors["ids"]), steps=len(steps), table_sha256=table, body_crc32=body
    )
    text = _text(made)
    path = folder / shard_name(made.sequence)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor_bytes(tensor))
    return Shard(path, made, 8 + len(text))


def read_header(path: Path) -> Shard:
    """Read and check a shard's header: size, checksum of the header, name.

    Raises:
        StoreError: Truncated, damaged, renamed, or of another format; the shard is named.
    """
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if size < 8 or (length <= _MAX_HEADER and size < 8 + length):
            raise refuse(path, f"is truncated: {size} bytes, less than its header")
        if length > _MAX_HEADER:
            raise refuse(path, "is corrupted: its header's length makes no sense")
        raw = file.read(length)
    try:
        facts = json.loads(json.loads(raw)["__metadata__"]["fudlr"])
        if facts.pop("version") != VERSION:
            raise refuse(path, "is of another version of the format")
        header = Header(**facts)
        sound = raw == _text(header)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise refuse(path, "is corrupted: its header cannot be read") from error
    if not sound:
        raise refuse(path, "is corrupted: its header is not as it was written")
    shard = Shard(path, header, 8 + len(raw))
    if size != shard.size:
        kind = "truncated" if size < shard.size else "corrupted"
        raise refuse(path, f"is {kind}: {size} bytes where its header says {shard.size}")
    if path.name != shard_name(header.sequence):
        original = shard_name(header.sequence)
        raise refuse(path, f"is a doubled or renamed shard: it was written as {original}")
    return shard


def shard_name(sequence: int) -> str:
    """File name of a store's `sequence`-th shard, from 0."""
    return f"rows-{sequence:06d}.safetensors"


def open_regular(path: Path) -> Any:
    """Open a file of a store for reading; a pipe or a device is refused, and not waited for.

    Raises:
        StoreError: It is missing, cannot be read, or is no regular file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
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


def _text(header: Header) -> bytes:
    """The safetensors header, one text for equal facts, padded so that the data is aligned."""
    facts = canonical_json({"version": VERSION, **asdict(header)})
    seal = hashlib.sha256(facts.encode()).hexdigest()
    whole = {"__metadata__": {"fudlr": facts, "sha256": seal}, **header.layout()}
    text = json.dumps(whole, separators=(",", ":")).encode()
    return text + b" " * (-(len(text) + 8) % _ALIGN)


def _sha256(pieces: Iterable[memoryview]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()
