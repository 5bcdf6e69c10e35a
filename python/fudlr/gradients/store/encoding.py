"""Rows as they lie on disk: float32, bfloat16, or int8 with scales.

int8 is symmetric, with one scale for each row and each run of `SCALE_BLOCK` columns. On sketches of
a small Llama's LoRA gradients (14 modules of 128 numbers whose sizes span three orders) one scale a
row lost the smallest module altogether (relative error .96); one for every 128 columns kept each to
.0125 and costs 3% more bytes. Errors of the whole row: .025 and .009; bfloat16's is .0016.
Every row is encoded by itself, so that what is stored does not depend on batches or shards.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_BLOCK = 128
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def scale_columns(dim: int, dtype: str) -> int:
    """Scales in a row of `dim` numbers: 0 but for int8."""
    return -(-dim // SCALE_BLOCK) if dtype == "int8" else 0


def row_bytes(dim: int, dtype: str) -> int:
    """Bytes of a row on disk, its scales included and its id not."""
    return dim * DTYPES[dtype].itemsize + 4 * scale_columns(dim, dtype)


def room(count: int, dim: int, dtype: str) -> tuple[Tensor, Tensor | None]:
    """Uninitialised stored rows `[count, p]` and, for int8, scales `[count, s]`."""
    columns = scale_columns(dim, dtype)
    scales = torch.empty(count, columns) if columns else None
    return torch.empty(count, dim, dtype=DTYPES[dtype]), scales


def encode(rows: Tensor, codes: Tensor, scales: Tensor | None) -> None:
    """Write `rows` `[b, p]` as stored into `codes` `[b, p]` and, for int8, `scales` `[b, s]`.

    Int8 rounds x / scale to the nearest integer with scale = max|x| / 127, so that each number is
    off by at most half a scale, 0.4% of the largest in its block.
    """
    if scales is None:
        codes.copy_(rows)
        return
    padded = _padded(rows.float())
    scales.copy_(padded.abs().amax(dim=2) / 127)
    # A block of zeros has scale 0; dividing by 1 instead keeps its zeros.
    steps = torch.where(scales > 0, scales, torch.ones_like(scales))
    rounded = (padded / steps[..., None]).round_().clamp_(-127, 127)
    codes.copy_(rounded.flatten(1)[:, : rows.shape[1]])


def decode_into(buffer: Tensor, rows: Tensor, scales: Tensor | None) -> Tensor:
    """Write stored `rows` `[b, p]` as float32 into `buffer` and return that part of it, `[b, p]`.

    Args:
        buffer: float32, made by `decode_buffer` for at least b rows of p numbers.
        rows: As stored.
        scales: `[b, s]` for int8.
    """
    part = buffer[: rows.shape[0]]
    out = part[:, : rows.shape[1]]
    out.copy_(rows)
    if scales is not None:
        part.view(part.shape[0], -1, SCALE_BLOCK).mul_(scales[..., None])
    return out


def decode_buffer(rows: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Room for `decode_into`; whole blocks of columns for int8, so that scaling is one product."""
    width = -(-dim // SCALE_BLOCK) * SCALE_BLOCK if dtype == torch.int8 else dim
    return torch.zeros(rows, width)


def decode(rows: Tensor, scales: Tensor | None) -> Tensor:
    """Stored `rows` `[b, p]` as float32."""
    return decode_into(decode_buffer(rows.shape[0], rows.shape[1], rows.dtype), rows, scales)


def _padded(rows: Tensor) -> Tensor:
    short = -rows.shape[1] % SCALE_BLOCK
    wide = torch.nn.functional.pad(rows, (0, short))
    return wide.view(rows.shape[0], -1, SCALE_BLOCK)
