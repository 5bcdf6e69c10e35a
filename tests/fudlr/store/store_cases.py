"""A small store that the tests write, damage and read."""

from __future__ import annotations

from pathlib import Path

import torch
from fudlr.gradients import Projection
from fudlr.gradients.store import Binding, Store, StoreWriter, digest

BINDING = Binding(*(digest(name) for name in ("model", "adapter", "data", "order")))
OTHER = digest("something else")
DTYPES = ("float32", "bfloat16", "int8")
STEP, D = 5, 3


def random_rows(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Rows whose runs of 16 columns differ in size by up to 10^3, as modules' gradients do."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (3 * torch.rand(dim // 16 + 1, generator=generator) - 3)
    return torch.randn(n, dim, generator=generator) * scale.repeat_interleave(16)[:dim]


def whole(dim: int) -> Projection:
    """A projection on `dim` columns that leaves them as they are."""
    return Projection({"x.lora_A.w": (1, dim)}, {"x.lora_A.w": torch.eye(dim)})


def append_all(writer: StoreWriter, rows: torch.Tensor, ids: torch.Tensor, epoch: int = 1) -> None:
    """Steps of five rows; step k's mean is k, k, k in each epoch."""
    for k, (part, names) in enumerate(zip(rows.split(STEP), ids.split(STEP), strict=True)):
        writer.append(names, part, torch.full((D,), float(k)), rate=0.1 / (k + 1), epoch=epoch)


def write_store(
    folder: Path,
    rows: torch.Tensor,
    dtype: str = "float32",
    *,
    ids: torch.Tensor | None = None,
    binding: Binding = BINDING,
    shard_rows: int = 10,
) -> Store:
    """Rows of samples 0, 1, … in steps of five, `shard_rows` of them or a little more a shard."""
    ids = torch.arange(len(rows)) if ids is None else ids
    size = rows.shape[1] * {"float32": 4, "bfloat16": 2, "int8": 1}[dtype]
    with StoreWriter(folder, "course", D, dtype, shard_bytes=shard_rows * size) as writer:
        writer.use(whole(rows.shape[1]))
        append_all(writer, rows, ids)
        writer.finish(binding)
    return Store.open(folder)
