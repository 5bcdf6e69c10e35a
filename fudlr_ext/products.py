"""x Wᵀ in float32 on a CPU with AVX-512: by oneDNN, which is part of torch.

torch multiplies float32 with MKL, whose kernels for CPUs that are not Intel's stop at AVX2: half
the speed of oneDNN's on an AMD EPYC. All other products are torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext import _C

LEAST = 2**26
"""Multiply-adds from which on oneDNN is ahead even of a shape that it has no kernel for yet: making
one takes half a millisecond."""


def _served(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.shape[0] * weight.numel() >= LEAST
        and _C.isa() == "avx512"
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    """Return x Wᵀ [T, out] for x [T, in] and W [out, in], without a derivative."""
    if not _served(x, weight):
        return x @ weight.t()
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # with gaps between its rows oneDNN has no fast kernel
    native: Any = torch.ops.mkldnn
    found: Tensor = native._linear_pointwise(x, weight, None, "none", [], "")
    return found


def added(to: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Add x Wᵀ to `to` [T, out] in place, without a derivative."""
    return to.add_(matmul(x, weight)) if _served(x, weight) else to.addmm_(x, weight.t())
