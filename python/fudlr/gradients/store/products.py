"""Products with a block of stored rows G: float32, bfloat16, or int8 with scales, by the engine's
row ops, which read every row once."""

from __future__ import annotations

from torch import Tensor

from fudlr_ext.ops import row_dots, row_gram, row_sums


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
        within 240 rows and float64 across them, in the order of the rows.
    """
    if vectors is None:
        return None, None if weights is None else row_sums(rows, weights, scales)
    if weights is None:
        return row_dots(rows, vectors, scales), None
    return row_gram(rows, vectors, weights[0], scales)
