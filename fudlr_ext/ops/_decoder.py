"""What the decoder's ops return, but for the numbers: for fake tensors, torch.compile and export.

The ops themselves are the engine's own, and have no public functions: `fudlr_ext.decoder`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _rows(like: Tensor, rows: int, width: int, spare: int = 0) -> Tensor:
    return like.new_empty(rows, width + spare)


def _rms_norm(
    x: Tensor, added: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    # Without something to add the sum is x itself, as the kernels return it.
    total = x if added is None else _rows(x, *x.shape)
    summed = x.dtype if x.dtype == torch.float64 else torch.float32
    return _rows(x, *x.shape), x.new_empty(x.shape[0], dtype=summed), total


def _rms_norm_tangent(
    x: Tensor, weight: Tensor, scale: Tensor, dx: Tensor, spare: int = 0
) -> Tensor:
    return _rows(x, dx.shape[0], x.shape[1], spare)


def _rms_norm_backward(  # noqa: PLR0917  the op has them
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    grads: Tensor,
    added: Tensor | None = None,
    delta: Tensor | None = None,
    dx: Tensor | None = None,
    spare: int = 0,
) -> Tensor:
    return _rows(x, grads.shape[0], x.shape[1], spare)


def _swiglu(gu: Tensor) -> Tensor:
    return _rows(gu, gu.shape[0], gu.shape[1] // 2)


def _swiglu_tangent(gu: Tensor, dgu: Tensor, spare: int = 0) -> Tensor:
    return _rows(gu, dgu.shape[0], gu.shape[1] // 2, spare)


def _swiglu_backward(
    gu: Tensor,
    grads: Tensor,
    delta: Tensor | None = None,
    dgu: Tensor | None = None,
    spare: int = 0,
) -> Tensor:
    return _rows(gu, grads.shape[0], gu.shape[1], spare)


def _rotate_heads(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> None:
    return None


def _attention(  # noqa: PLR0917  the op has them
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    limits: Tensor,
    heads: int,
    key_heads: int,
    scale: float,
) -> Tensor:
    return _rows(q, *q.shape)


def _attention_tangent(  # noqa: PLR0917  the op has them
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    limits: Tensor,
    heads: int,
    key_heads: int,
    scale: float,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    spare: int = 0,
) -> Tensor:
    return _rows(q, dq.shape[0], q.shape[1], spare)


def _attention_backward(  # noqa: PLR0917  the op has them
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    limits: Tensor,
    heads: int,
    key_heads: int,
    scale: float,
    grads: Tensor,
    delta: Tensor | None = None,
    dq: Tensor | None = None,
    dk: Tensor | None = None,
    dv: Tensor | None = None,
    spare: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of one array, those of the queries among them where every position has one."""
    each = 1 if q.shape[0] == 0 else grads.shape[0] // q.shape[0]
    wide, narrow = q.shape[1], k.shape[1]
    together = q.shape[0] == k.shape[0]
    start = wide if together else 0
    side = _rows(q, k.shape[0] * each, start + 2 * narrow, spare)
    to_q = side[:, :wide] if together else _rows(q, grads.shape[0], wide)
    return to_q, side[:, start : start + narrow], side[:, start + narrow : start + 2 * narrow]


for _fake in (
    _rms_norm,
    _rms_norm_tangent,
    _rms_norm_backward,
    _swiglu,
    _swiglu_tangent,
    _swiglu_backward,
    _rotate_heads,
    _attention,
    _attention_tangent,
    _attention_backward,
):
    torch.library.register_fake(f"fudlr_decoder::{_fake.__name__.removeprefix('_')}", _fake)
