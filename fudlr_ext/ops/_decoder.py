"""What the decoder's ops return, but for the numbers: for fake tensors, torch.compile and export.

The ops themselves are the engine's own, and have no public functions: `fudlr_ext.decoder`. Their
last argument is the number of spare columns, 0 where it is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from fudlr_ext.ops._autograd import below_autograd, register_without

P = ParamSpec("P")
R = TypeVar("R")


def without_autograd(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function call the ops, and torch's, as if autograd did not exist: it has its own."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        with below_autograd():
            return function(*args, **kwargs)

    return called


def _register(
    name: str, arguments: int, fake: Callable[..., Any], changed: int | None = None
) -> None:
    """Register `fake`, which takes all of an op's arguments, left out or not."""

    def filled(*given: Any) -> Any:
        left_out = [None] * (arguments - 1 - len(given)) + [0]
        return fake(*given, *left_out[: arguments - len(given)])

    register_without(f"fudlr_decoder::{name}", filled, changed)


def _rms_norm(
    x: Tensor, added: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    # Without something to add the sum is x itself, as the kernels return it.
    total = x if added is None else x.new_empty(x.shape)
    summed = x.dtype if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=summed), total


def _attention_backward(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of one array, those of the queries among them where every position has one."""
    grads, spare = rest[7], rest[-1]
    each = 1 if q.shape[0] == 0 else grads.shape[0] // q.shape[0]
    wide, narrow = q.shape[1], k.shape[1]
    together = q.shape[0] == k.shape[0]
    start = wide if together else 0
    side = q.new_empty(k.shape[0] * each, start + 2 * narrow + spare)
    to_q = side[:, :wide] if together else q.new_empty(grads.shape[0], wide)
    return to_q, side[:, start : start + narrow], side[:, start + narrow : start + 2 * narrow]


def _like(first: int, columns: int = 1) -> Callable[..., Tensor]:
    """Rows as argument `first` has, argument 0's width over `columns`, and the spare columns."""
    return lambda *given: given[0].new_empty(
        given[first].shape[0], given[0].shape[1] // columns + given[-1]
    )


_register("rms_norm", 4, _rms_norm)
_register("rms_norm_tangent", 5, _like(3))
_register("rms_norm_backward", 8, _like(3))
_register("swiglu", 1, lambda gu: gu.new_empty(gu.shape[0], gu.shape[1] // 2))
_register("swiglu_tangent", 3, _like(1, 2))
_register("swiglu_backward", 5, _like(1))
_register("rotate_heads", 4, lambda *given: None, changed=0)
_register("attention", 9, lambda q, *rest: q.new_empty(q.shape))
_register("attention_tangent", 13, _like(9))
_register("attention_backward", 15, _attention_backward)
