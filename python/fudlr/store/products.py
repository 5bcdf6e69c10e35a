"""Products with stored rows: the one place that a compiled kernel replaces.

G stays as it is stored; a tile of it at a time is turned into float32 in a buffer that fits the
cache, and used there for both products, so that memory sees each row once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.store.encoding import decode_buffer, decode_into

_TILE_BYTES = 2**21  # of float32: 256 rows of 2,000 were fastest, and 32 or 2,048 30% slower


def block_products(
    rows: Tensor,
    scales: Tensor | None,
    vectors: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Products with a block of stored rows G `[b, p]`, in one pass over them.

    Args:
        rows: As stored: float32, bfloat16, or int8 with `scales`.
        scales: `[b, s]` float32 for int8.
        vectors: V `[k, p]` float32.
        weights: W `[w, b]` float32; together with `vectors` one row, `[1, b]`.

    Returns:
        `dots` G Vᵀ `[b, k]` where there are vectors (float32), and `sums` in float64 where there
        are weights: W G `[w, p]`, or with both (diag(w) G Vᵀ)ᵀ G `[k, p]`. Sums are float32
        within a tile of rows and float64 across tiles, in the order of the rows.
    """
    count, dim = rows.shape
    tile = max(1, _TILE_BYTES // (4 * dim))
    buffer = decode_buffer(min(tile, count), dim, rows.dtype)
    dots = None if vectors is None else torch.empty(count, vectors.shape[0])
    sums = None
    if weights is not None:
        lines = weights.shape[0] if vectors is None else vectors.shape[0]
        sums = torch.zeros(lines, dim, dtype=torch.float64)
    for start in range(0, count, tile):
        cut = slice(start, start + tile)
        part = rows[cut]
        if rows.dtype != torch.float32:
            part = decode_into(buffer, part, None if scales is None else scales[cut])
        left = None if weights is None else weights[:, cut]
        if dots is not None and vectors is not None:
            torch.mm(part, vectors.T, out=dots[cut])
            left = None if left is None else dots[cut].T * left
        if sums is not None and left is not None:
            sums += left @ part
    return dots, sums
