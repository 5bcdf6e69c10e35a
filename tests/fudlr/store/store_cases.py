"""A small store that the tests write, damage and read."""

from __future__ import annotations

from pathlib import Path

import torch
from fudlr.gradients.store import Binding, Store, StoreWriter, fingerprint
from fudlr.gradients.store.encoding import encode, room

BINDING = Binding(*(fingerprint(name) for name in ("model", "adapter", "data", "order")))
OTHER = fingerprint("something else")
DTYPES = ("float32", "bfloat16", "int8")


def random_rows(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Rows whose runs of 16 columns differ in size by up to 10^3, as modules' gradients do."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (3 * torch.rand(dim // 16 + 1, generator=generator) - 3)
    return torch.randn(n, dim, generator=generator) * scale.repeat_interleave(16)[:dim]


def encoded(rows: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    codes, scales = room(*rows.shape, dtype)
    encode(rows, codes, scales)
    return codes, scales


def write_store(
    folder: Path,
    rows: torch.Tensor,
    dtype: str = "float32",
    *,
    ids: torch.Tensor | None = None,
    binding: Binding = BINDING,
    writer: str = "0",
    shard_rows: int = 7,
) -> Store:
    ids = torch.arange(len(rows)) if ids is None else ids
    with StoreWriter(
        folder, binding, rows.shape[1], dtype, writer=writer, shard_rows=shard_rows
    ) as store:
        for part, names in zip(rows.split(5), ids.split(5), strict=True):
            store.append(names, part)
    return Store.open(folder)
