"""What a recording makes of samples' gradients G_i = Σ_t left_t right_tᵀ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fudlr_ext.reference.rows import SCALE_BLOCK
from fudlr_ext.reference.samples import sample_grads


def add_sketches(  # noqa: PLR0917  the op's own arguments
    rows: Tensor,
    left: Sequence[Tensor],
    right: Sequence[Tensor],
    offsets: Tensor | None,
    directions: Tensor,
    table: Tensor,
) -> None:
    """Add P G_i, or G_i Pᵀ where P is of the right factor, of several matrices to `rows` `[n, p]`.

    Args:
        rows: What is added to.
        left, right: `[T, a]` and `[T, b]` of each matrix, or more dimensions than T.
        offsets: `[n + 1]`; None where the samples have as many positions each.
        directions: The P, one after the other.
        table: `[m, 4]`: where a matrix's P `[q, a]` or `[q, b]` begins, q, whether it is of the
            left factor, and the column that its sketch begins at.
    """
    entries = zip(left, right, table.tolist(), strict=True)
    for left_one, right_one, (start, q, of_left, column) in entries:
        one, other = left_one.flatten(0, -2), right_one.flatten(0, -2)
        each = len(one) // max(1, len(rows))
        at = torch.arange(len(rows) + 1) * each if offsets is None else offsets
        grads = sample_grads(one, other, at)
        width = grads.shape[1 if of_left else 2]
        side = directions[start : start + q * width].view(q, width)
        found = (side @ grads if of_left else grads @ side.T).flatten(1)
        rows[:, column : column + found.shape[1]] += found


def encode_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 codes `[n, p]` and their scales, max |x| / 127 of each run of 128 columns.

    A run that is not finite has a scale that is not, and codes 0.
    """
    wide = torch.nn.functional.pad(rows, (0, -rows.shape[1] % SCALE_BLOCK))
    wide = wide.view(len(rows), -1, SCALE_BLOCK)
    scales = wide.abs().amax(dim=2) / 127
    # A block of zeros has scale 0; dividing by 1 instead keeps its zeros.
    steps = torch.where(scales > 0, scales, torch.ones_like(scales))
    codes = (wide / steps[..., None]).round().clamp(-127, 127)
    codes = torch.where(scales.isfinite()[..., None], codes, 0.0).to(torch.int8)
    return codes.flatten(1)[:, : rows.shape[1]].contiguous(), scales
