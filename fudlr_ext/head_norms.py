"""RMS norms of single heads of queries and keys (Qwen3, Gemma 3), in place in a wider array.

For x [T, heads · w] each head is normalised with a weight [w]. Tangents and cotangents have k rows
a position, t·k to t·k + k, as everywhere; the ops are given rows (t, head) with k rows each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ops: Any = torch.ops.fudlr_decoder


def by_heads(x: Tensor, width: int, k: int) -> Tensor:
    """Return [T k, heads · w] as rows (t, head, j), [T heads k, w], anew."""
    rows = x.unflatten(0, (-1, k)).unflatten(2, (-1, width))  # [T, k, heads, w]
    return rows.transpose(1, 2).clone(memory_format=torch.contiguous_format).view(-1, width)


def write(x: Tensor, rows: Tensor, k: int) -> None:
    """Write rows (t, head, j) back into x [T k, heads · w]."""
    width = rows.shape[1]
    given = rows.view(-1, x.shape[1] // width, k, width).transpose(1, 2)
    x.unflatten(0, (-1, k)).unflatten(2, (-1, width)).copy_(given)


class HeadNorm:
    """The norm of one pass's queries or keys, applied to `x` in place when it is made.

    Attributes:
        raw: x as it was, [T, heads · w].
        scale: (mean x² + eps)^(-1/2), [T, heads].
        weight: [w].
        delta: The primal cotangent of its output, [T, heads · w], once it is kept.
    """

    def __init__(self, x: Tensor, weight: Tensor, eps: float) -> None:
        self.raw, self.weight = x.clone(memory_format=torch.contiguous_format), weight
        rows = by_heads(x, len(weight), 1)
        normed, scale, _ = ops.rms_norm(rows, None, weight, eps)
        write(x, normed, 1)
        self.scale: Tensor = scale.view(len(x), -1)
        self.delta: Tensor | None = None

    def part(self, rows: slice) -> HeadNorm:
        """Return the share of some positions, as views."""
        found = HeadNorm.__new__(HeadNorm)
        found.raw, found.scale, found.weight = self.raw[rows], self.scale[rows], self.weight
        found.delta = None if self.delta is None else self.delta[rows]
        return found

    def _primal(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.raw.view(-1, len(self.weight)), self.weight, self.scale.reshape(-1)

    def tangent(self, dx: Tensor, k: int) -> Tensor:
        """Turn the input's tangents [T k, heads · w] into the output's; return them, by heads."""
        rows = by_heads(dx, len(self.weight), k)
        write(dx, ops.rms_norm_tangent(*self._primal(), rows), k)
        return rows

    def backward(self, grads: Tensor, keep: bool) -> None:
        """Turn the output's gradient [T, heads · w] into the input's."""
        rows = by_heads(grads, len(self.weight), 1)
        if keep:
            self.delta = rows.view(len(grads), -1)
        write(grads, ops.rms_norm_backward(*self._primal(), rows), 1)

    def back(self, grads: Tensor, k: int, dx: Tensor | None) -> None:
        """Turn the output's δ' [T k, heads · w] into the input's; with dx, by the norm's own curve.

        Args:
            grads: δ'.
            k: The number of directions.
            dx: What `tangent` returned, where second derivatives are wanted.
        """
        rows = by_heads(grads, len(self.weight), k)
        delta = None
        if dx is not None:
            assert self.delta is not None
            delta = self.delta.reshape(-1, len(self.weight))
        write(grads, ops.rms_norm_backward(*self._primal(), rows, None, delta, dx), k)
