"""Arguments of norms, gates and rotations for the kernels for GPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fudlr_ext.testing import result_dtype

Random = Callable[..., Tensor]


def _norm(op: str, random: Random, size: tuple[int, int, int], way: str) -> tuple:
    rows, width, k = size
    x, weight = random(rows, width), random(width)
    if op == "rms_norm":
        return x, random(rows, width) if way == "added" else None, weight, 0.1
    scale = torch.rsqrt(x.double().square().mean(1) + 0.1).to(result_dtype(x.dtype))
    grads, added, dx = (random(rows * k, width) for _ in range(3))
    if op == "rms_norm_tangent":
        return x, weight, scale, dx
    second = (random(rows, width), dx) if way == "second" else (None, None)
    return x, weight, scale, grads, added if way == "added" else None, *second


def _swiglu(op: str, random: Random, size: tuple[int, int, int], way: str) -> tuple:
    rows, width, k = size
    gu = random(rows, 2 * width) * 3
    if op == "swiglu":
        return (gu,)
    if op == "swiglu_tangent":
        return gu, random(rows * k, 2 * width)
    second = (random(rows, width), random(rows * k, 2 * width))
    return gu, random(rows * k, width), *(second if way == "second" else (None, None))


def _rotate(op: str, random: Random, size: tuple[int, int, int], way: str) -> tuple:
    rows, width, k = size
    width += width % 2
    angles = random(rows, width)
    return random(rows * k, 3 * width), angles.cos(), angles.sin(), way == "inverse"


# Rows have blocks of 32 to 256 threads, a thread vectors of 2, 4 or 8 numbers.
DECODER_SIZES = ((11, 1, 3), (3, 7, 2), (5, 64, 1), (2, 1101, 3))
DECODER_WAYS = {
    "rms_norm": (_norm, "plain", "added"),
    "rms_norm_tangent": (_norm, "plain"),
    "rms_norm_backward": (_norm, "plain", "added", "second"),
    "swiglu": (_swiglu, "plain"),
    "swiglu_tangent": (_swiglu, "plain"),
    "swiglu_backward": (_swiglu, "plain", "second"),
    "rotate_heads": (_rotate, "plain", "inverse"),
}
