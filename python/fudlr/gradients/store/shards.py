"""One shard: a safetensors file that says by itself what it holds and which store it is of.

Written here rather than by the safetensors library, which puts a header's entries in an order that
changes from run to run: equal shards are equal files. Any safetensors reader opens them.

Tensors: `ids` int64 `[n]`, `scales` float32 `[n, s]` (int8 only), `rows` `[n, p]`, in this order,
so that ids and scales are aligned whatever p is.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.common.files import atomic_file
from fudlr.gradients.store.encoding import DTYPES, scale_columns
from fudlr.gradients.store.errors import StoreError
from fudlr.gradients.store.spec import StoreSpec, canonical_json, tensor_bytes

NAME = re.compile(r"rows-(?P<writer>[A-Za-z0-9_.]+)-(?P<sequence>\d{6,})\.safetensors")
_TAGS = {
    torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8",
}  # fmt: skip
_ALIGN = 64  # bytes: the data begins at a cache line
_MAX_HEADER = 100 * 2**20  # the safetensors format's own limit


@dataclass(frozen=True)
class Part:
    """Some encoded rows: `ids` `[b]`, `rows` `[b, p]`, `scales` `[b, s]` or None."""

    ids: Tensor
    rows: Tensor
    scales: Tensor | None

    def take(self, index: slice) -> Part:
        """Some of them, as views."""
        scales = None if self.scales is None else self.scales[index]
        return Part(self.ids[index], self.rows[index], scales)


@dataclass(frozen=True)
class Shard:
    """A shard's header, checked; `begin` is where its tensors start in the file."""

    path: Path
    spec: StoreSpec
    writer: str
    sequence: int
    rows: int
    ids_sha256: str
    rows_sha256: str
    kept: dict[str, float]
    begin: int

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def size(self) -> int:
        """Bytes of the file."""
        end: int = _layout(self.rows, self.spec)["rows"]["data_offsets"][1]
        return self.begin + end


def shard_name(writer: str, sequence: int) -> str:
    """File name of a writer's `sequence`-th shard, from 0."""
    return f"rows-{writer}-{sequence:06d}.safetensors"


def write_shard(
    folder: Path,
    spec: StoreSpec,
    part: Part,
    *,
    writer: str,
    sequence: int,
    kept: dict[str, float],
) -> Shard:
    """Write `part` as one shard: under a temporary name, flushed, renamed.

    A process killed at any moment leaves the whole shard or none under its name.
    """
    ids = tensor_bytes(part.ids)
    scaled = [] if part.scales is None else [part.scales]
    rows = [tensor_bytes(tensor) for tensor in (*scaled, part.rows)]
    count = part.ids.numel()
    facts = {
        "format": "fudlr-rows",
        "spec": canonical_json(spec.to_json()),
        "writer": writer,
        "sequence": str(sequence),
        "rows": str(count),
        "kept": canonical_json(kept),
        "ids_sha256": _sha256([ids]),
        "rows_sha256": _sha256(rows),
    }
    text = _header({**facts, "header_sha256": _seal(facts)}, count, spec)
    path = folder / shard_name(writer, sequence)
    with atomic_file(path) as temporary, temporary.open("wb", buffering=0) as file:
        head = memoryview(len(text).to_bytes(8, "little") + text)
        for piece in [head, ids, *rows]:
            _write_all(file.fileno(), piece)
    return Shard(
        path, spec, writer, sequence, count, facts["ids_sha256"], facts["rows_sha256"],
        dict(kept), 8 + len(text),
    )  # fmt: skip


def read_header(path: Path) -> Shard:
    """Read and check a shard's header: size, checksum of the header, name.

    Raises:
        StoreError: Truncated, damaged, renamed, or of another format; the shard is named.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if size < 8 or (length <= _MAX_HEADER and size < 8 + length):
                raise refuse(path, f"is truncated: {size} bytes, less than its header")
            if length > _MAX_HEADER:
                raise refuse(path, "is corrupted: its header's length makes no sense")
            raw = file.read(length)
    except OSError as error:
        raise refuse(path, f"cannot be read ({error.strerror})") from error
    shard = _parse(path, raw)
    if size != shard.size:
        kind = "truncated" if size < shard.size else "corrupted"
        raise refuse(path, f"is {kind}: {size} bytes where its header says {shard.size}")
    if path.name != shard_name(shard.writer, shard.sequence):
        original = shard_name(shard.writer, shard.sequence)
        raise refuse(path, f"is a doubled or renamed shard: it was written as {original}")
    return shard


def _parse(path: Path, raw: bytes) -> Shard:
    try:
        header: dict[str, Any] = json.loads(raw)
        facts = dict(header.pop("__metadata__"))
        seal = facts.pop("header_sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise refuse(path, "is corrupted: its header cannot be read") from error
    if seal != _seal(facts):
        raise refuse(path, "is corrupted: its header does not match its checksum")
    try:
        spec = StoreSpec.from_json(json.loads(facts["spec"]))
        shard = Shard(
            path, spec, facts["writer"], int(facts["sequence"]), int(facts["rows"]),
            facts["ids_sha256"], facts["rows_sha256"], json.loads(facts["kept"]), 8 + len(raw),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, UsageError) as error:
        raise refuse(path, f"has a header that this program cannot use ({error})") from error
    if raw != _header({**facts, "header_sha256": seal}, shard.rows, spec):
        raise refuse(path, "is corrupted: its header is not as it was written")
    return shard


def read_ids(shard: Shard) -> Tensor:
    """The shard's sample ids, `[n]` int64, checked against their checksum."""
    raw = _map(shard, "ids", 0, shard.rows)
    if _sha256([tensor_bytes(raw)]) != shard.ids_sha256:
        raise refuse(shard.path, "is corrupted: its sample ids do not match their checksum")
    return raw.clone()


def read_part(shard: Shard, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
    """Rows `start` to `stop` of a shard and their scales, as views of the mapped file."""
    scales = _map(shard, "scales", start, stop) if shard.spec.dtype == "int8" else None
    return _map(shard, "rows", start, stop), scales


def check_content(shard: Shard, window: int = 8 * 2**20) -> None:
    """Read all of a shard's rows and compare with their checksum.

    Raises:
        StoreError: They differ.
    """
    digest = hashlib.sha256()
    names = ("scales", "rows") if shard.spec.dtype == "int8" else ("rows",)
    for name in names:
        begin, end = _layout(shard.rows, shard.spec)[name]["data_offsets"]
        step = max(1, window * shard.rows // max(end - begin, 1))
        for start in range(0, shard.rows, step):
            part = _map(shard, name, start, min(start + step, shard.rows))
            digest.update(tensor_bytes(part))
    if digest.hexdigest() != shard.rows_sha256:
        raise refuse(shard.path, "is corrupted: its rows do not match their checksum")


def refuse(path: Path, found: str) -> StoreError:
    """The error for one bad shard."""
    return StoreError(
        f"the store {path.parent} was to be read",
        f"shard {path.name} {found}",
        "Delete this shard and record its samples again, or restore it from a copy",
    )


def _tensors(rows: int, spec: StoreSpec) -> dict[str, tuple[torch.dtype, list[int]]]:
    """Names, types and shapes of a shard's tensors, in the order in which they lie."""
    out: dict[str, tuple[torch.dtype, list[int]]] = {"ids": (torch.int64, [rows])}
    if spec.dtype == "int8":
        out["scales"] = (torch.float32, [rows, scale_columns(spec.dim, spec.dtype)])
    out["rows"] = (DTYPES[spec.dtype], [rows, spec.dim])
    return out


def _layout(rows: int, spec: StoreSpec) -> dict[str, Any]:
    """The header's entries for the tensors, as safetensors has them."""
    out: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in _tensors(rows, spec).items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        out[name] = {"dtype": _TAGS[dtype], "shape": shape, "data_offsets": [begin, end]}
    return out


def _header(metadata: dict[str, str], rows: int, spec: StoreSpec) -> bytes:
    """The safetensors header, one text for equal facts, padded so that the data is aligned."""
    header = {"__metadata__": metadata, **_layout(rows, spec)}
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-(len(text) + 8) % _ALIGN)


def _map(shard: Shard, name: str, start: int, stop: int) -> Tensor:
    """Rows of one tensor as a view of the file, mapped for as long as the view lives.

    Only the asked rows are mapped, so that a pass over a store holds one window at a time.
    """
    dtype, (_, *tail) = _tensors(shard.rows, shard.spec)[name]
    first: int = _layout(shard.rows, shard.spec)[name]["data_offsets"][0]
    per_row = math.prod(tail) * dtype.itemsize
    offset = shard.begin + first + start * per_row
    count = (stop - start) * math.prod(tail)
    if count == 0:
        return torch.empty([stop - start, *tail], dtype=dtype)
    base = offset - offset % mmap.ALLOCATIONGRANULARITY
    length = offset - base + (stop - start) * per_row
    try:
        with shard.path.open("rb") as file:
            # Reading a mapped page behind a file's end kills the process: look before.
            if os.fstat(file.fileno()).st_size != shard.size:
                raise refuse(shard.path, "has changed its size since the store was opened")
            # Copy on write, and never written: torch has no read-only tensors.
            view = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=base)
    except OSError as error:
        raise refuse(shard.path, f"cannot be read ({error.strerror})") from error
    # Pages are read here and not at their first use. A tensor's sum holds no interpreter lock, so
    # that a thread may read ahead of another that computes; `madvise` would hold it all the time.
    torch.frombuffer(view, dtype=torch.uint8)[:: mmap.PAGESIZE].sum()
    flat = torch.frombuffer(view, dtype=dtype, count=count, offset=offset - base)
    return flat.view(stop - start, *tail)


def _sha256(pieces: Sequence[memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _seal(facts: dict[str, str]) -> str:
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()


def _write_all(handle: int, piece: memoryview) -> None:
    done = 0
    while done < len(piece):  # one write takes 2 GiB at most
        done += os.write(handle, piece[done:])
