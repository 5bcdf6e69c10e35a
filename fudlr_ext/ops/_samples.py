"""What the sample ops share: padded and packed input, fake results, and parts of the backward."""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr_ext.errors import EngineError
from fudlr_ext.ops._devices import same_device


def pack(
    op: str, left: Tensor, right: Tensor, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return left [T, a], right [T, b] and offsets [n + 1] for packed or padded samples.

    Padded samples [n, t, ...] without offsets are used whole; with offsets, sample i has
    `offsets[i + 1] - offsets[i]` positions, its first ones, and the others are left out.
    """
    same_device(op, left=left, right=right, offsets=offsets)
    if left.dim() == 2 and offsets is not None:
        return left, right, offsets
    if left.dim() != 3 or right.dim() != 3 or left.shape[:2] != right.shape[:2]:
        raise EngineError(
            f"{op}: left and right must be packed [T, a] and [T, b] with offsets [n + 1], or "
            "padded [n, t, a] and [n, t, b]",
            f"their shapes are {list(left.shape)} and {list(right.shape)}, and offsets are "
            f"{'missing' if offsets is None else 'given'}",
            "Reshape them, or give the offsets of packed samples",
        )
    n, t, a = left.shape
    if offsets is None:
        offsets = torch.arange(n + 1, device=left.device) * t
        return left.reshape(n * t, a), right.reshape(n * t, right.shape[2]), offsets
    lengths = offsets.diff()
    if lengths.shape != (n,):
        raise EngineError(
            f"{op}: offsets must be [n + 1] for {n} padded samples",
            f"their shape is {list(offsets.shape)}",
            "Give one more number than there are samples",
        )
    keep = torch.arange(t, device=left.device) < lengths[:, None]
    return left[keep], right[keep], offsets - offsets[:1]


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of results: float64 for float64, and float32 for all others."""
    return dtype if dtype == torch.float64 else torch.float32


def sample_of(offsets: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Return each position's sample [T], and whether it belongs to one [T]."""
    index = torch.arange(positions, device=offsets.device)
    sample = torch.searchsorted(offsets, index, right=True) - 1
    inside = (index >= offsets[0]) & (index < offsets[-1])
    return sample.where(inside, 0), inside


def spread(per_sample: Tensor, offsets: Tensor, positions: int) -> Tensor:
    """Return per_sample [n, ...] at every position [T, ...], and zero outside of all samples."""
    if per_sample.shape[0] == 0:
        return per_sample.new_zeros(positions, *per_sample.shape[1:])
    sample, inside = sample_of(offsets, positions)
    mask = inside.reshape(-1, *[1] * (per_sample.dim() - 1))
    return per_sample[sample] * mask
