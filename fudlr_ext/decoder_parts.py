"""Parts of decoder layers that some models have: GeGLU gates, and norms of single heads.

A gate is of rows [g | u]: act(g) u, SwiGLU by its op and GeGLU (Gemma) in plain torch, its GELU by
tanh: t = tanh(c (g + 0.044715 g³)), act(g) = g (1 + t) / 2. RMS norms of the heads of queries and
keys (Qwen3, Gemma 3) are applied in place in a wider array: of x [T, heads · w] each head is
normalised with a weight [w]. Tangents and cotangents have k rows a position, as everywhere; the
norms' ops are given rows (t, head) with k rows each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ops: Any = torch.ops.fudlr_decoder
C, CUBE = (2 / torch.pi) ** 0.5, 0.044715


def _wide(x: Tensor) -> Tensor:
    """Return x in float32 where it is of 16 bits, so that results are rounded once."""
    return x if x.dtype == torch.float64 else x.float()


def _gelu(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return act(g) and its first two derivatives."""
    t = torch.tanh(C * (g + CUBE * g**3))
    inner = C * (1 + 3 * CUBE * g**2)
    one = (1 - t**2) * inner
    two = -2 * t * one * inner + (1 - t**2) * C * 6 * CUBE * g
    return g * (1 + t) / 2, (1 + t + g * one) / 2, one + g * two / 2


def gated(gelu: bool, gu: Tensor) -> Tensor:
    """Return act(g) u for gu [T, 2 w], [T, w]."""
    if not gelu:
        out: Tensor = ops.swiglu(gu)
        return out
    g, u = _wide(gu).chunk(2, 1)
    return (_gelu(g)[0] * u).to(gu.dtype)


def gate_tangent(gelu: bool, gu: Tensor, dgu: Tensor, spare: int) -> Tensor:
    """Return the output's tangents for dgu [T k, 2 w], [T k, w] and `spare` free columns."""
    if not gelu:
        out: Tensor = ops.swiglu_tangent(gu, dgu, spare)
        return out
    (g, u), (dg, du) = gu[:, None].chunk(2, 2), dgu.unflatten(0, (len(gu), -1)).chunk(2, 2)
    act, one, _ = _gelu(g)
    return torch.nn.functional.pad((one * u * dg + act * du).flatten(0, 1), (0, spare))


def gate_backward(
    gelu: bool,
    gu: Tensor,
    grads: Tensor,
    again: tuple[Tensor | None, Tensor | None] = (None, None),
    spare: int = 0,
) -> Tensor:
    """Return the gradient of gu for `grads` [T k, w], [T k, 2 w] and `spare` free columns.

    Args:
        gelu: GeGLU, not SwiGLU.
        gu: [T, 2 w].
        grads: The output's cotangents, or their changes.
        again: The primal cotangent [T, w] and the tangents of gu [T k, 2 w], which add the
            activation's own curve.
        spare: Free columns at the right.
    """
    if not gelu:
        out: Tensor = ops.swiglu_backward(gu, grads, *again, spare)
        return out
    (g, u), e = _wide(gu)[:, None].chunk(2, 2), _wide(grads).unflatten(0, (len(gu), -1))
    act, one, two = _gelu(g)
    to_g, to_u = one * u * e, act * e
    delta, dgu = again
    if delta is not None and dgu is not None:
        dg, du = dgu.unflatten(0, (len(gu), -1)).chunk(2, 2)
        to_g = to_g + (two * u * dg + one * du) * delta[:, None]
        to_u = to_u + one * dg * delta[:, None]
    both = torch.cat([to_g, to_u], 2).flatten(0, 1).to(gu.dtype)
    return torch.nn.functional.pad(both, (0, spare))


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
