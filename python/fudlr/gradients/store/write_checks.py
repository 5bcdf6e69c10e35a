"""What a writer refuses: options that do not fit, and rows that are not finite."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.gradients.store.errors import StoreError
from fudlr.gradients.store.projection import Projection

_WRITER = re.compile(r"[A-Za-z0-9_.]{1,64}")


def check_options(writer: str, shard_rows: int, dim: int, projection: Projection | None) -> None:
    """Refuse a name, a size or a projection that no store can have."""
    if not _WRITER.fullmatch(writer):
        raise UsageError(
            "a writer was to be named",
            f"{writer!r} is not one to 64 letters, digits, _ and .",
            "Use the process's rank, for one",
        )
    if shard_rows < 1:
        raise UsageError("a shard's rows were to be set", f"{shard_rows}", "Use at least 1")
    if projection is not None and projection.dim != dim:
        raise UsageError(
            f"rows of {dim} numbers were to be stored with their projection",
            f"it makes {projection.dim}",
            "Use projection.dim",
        )


def check_finite(ids: Tensor, rows: Tensor) -> None:
    """Raise StoreError by the first sample whose row is NaN or infinite."""
    # A sum is finite only if all its terms are, and needs no second copy of the rows.
    if bool(rows.sum(dtype=torch.float64).isfinite()):
        return
    broken = ids[~rows.isfinite().all(dim=1)]
    raise StoreError(
        "per-sample gradients were to be stored",
        f"{broken.numel()} of them are not finite, sample {int(broken[0])} the first",
        "Look for NaN or overflow in that sample's loss; 16-bit weights often cause it",
    )
