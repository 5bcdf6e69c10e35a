"""What a recording makes of samples' gradients G_i = Σ_t left_t right_tᵀ."""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr_ext.reference.rows import SCALE_BLOCK
from fudlr_ext.reference.samples import sample_grads


def add_sketch(  # noqa: PLR0917  the op's own arguments
    rows: Tensor,
    left: Tensor,
    right: Tensor,
    offsets: Tensor,
    directions: Tensor,
    of_left: bool,
    column: int,
) -> None:
    """Add P G_i, or G_i Pᵀ where P `[q, width]` is of the right factor, to `rows` from `column`."""
    grads = sample_grads(left, right, offsets)
    found = directions @ grads if of_left else grads @ directions.T
    found = found.flatten(1)
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
