"""The gated activations of a decoder layer's MLP: SwiGLU by its op, GeGLU (Gemma) in plain torch.

Of rows [g | u]: act(g) u. Tangents and cotangents have k rows a position. The GELU is the one by
tanh: t = tanh(c (g + 0.044715 g³)), act(g) = g (1 + t) / 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ops: Any = torch.ops.fudlr_decoder
C, CUBE = (2 / torch.pi) ** 0.5, 0.044715


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
    g, u = gu.chunk(2, 1)
    return _gelu(g)[0] * u


def tangent(gelu: bool, gu: Tensor, dgu: Tensor, spare: int) -> Tensor:
    """Return the output's tangents for dgu [T k, 2 w], [T k, w] and `spare` free columns."""
    if not gelu:
        out: Tensor = ops.swiglu_tangent(gu, dgu, spare)
        return out
    (g, u), (dg, du) = gu[:, None].chunk(2, 2), dgu.unflatten(0, (len(gu), -1)).chunk(2, 2)
    act, one, _ = _gelu(g)
    return torch.nn.functional.pad((one * u * dg + act * du).flatten(0, 1), (0, spare))


def backward(
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
    (g, u), e = gu[:, None].chunk(2, 2), grads.unflatten(0, (len(gu), -1))
    act, one, two = _gelu(g)
    to_g, to_u = one * u * e, act * e
    delta, dgu = again
    if delta is not None and dgu is not None:
        dg, du = dgu.unflatten(0, (len(gu), -1)).chunk(2, 2)
        to_g = to_g + (two * u * dg + one * du) * delta[:, None]
        to_u = to_u + one * dg * delta[:, None]
    return torch.nn.functional.pad(torch.cat([to_g, to_u], 2).flatten(0, 1), (0, spare))
