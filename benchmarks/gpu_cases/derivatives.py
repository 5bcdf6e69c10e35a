"""Derivatives of a function of [T, w] arrays along k tangents, by torch.func: the decoder's rivals.

Tangents, cotangents and results have k rows a position, as the decoder's ops have them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from gpu_cases.case import PLAIN, Way

Primals = tuple[Tensor, ...]


def apart(rows: Tensor, k: int) -> Tensor:
    """[T k, w] as [T, k, w]."""
    return rows.unflatten(0, (-1, k))


def one_after_the_other(function: Callable[..., Any], *rows: Tensor) -> Any:
    """The function of every tangent; the results side by side."""
    found = [function(*each) for each in zip(*(r.unbind(1) for r in rows), strict=True)]
    if isinstance(found[0], Tensor):
        return torch.stack(found, 1).flatten(0, 1)
    return tuple(torch.stack(each, 1).flatten(0, 1) for each in zip(*found, strict=True))


def all_at_once(function: Callable[..., Any], *rows: Tensor) -> Any:
    found = vmap(function, in_dims=1, out_dims=1)(*rows)
    if isinstance(found, Tensor):
        return found.flatten(0, 1)
    return tuple(each.flatten(0, 1) for each in found)


def both(kind: str, make: Callable[[], Callable[..., Any]], *rows: Tensor) -> dict[str, Way]:
    """One tangent after the other, which takes least memory and is "plain", and all at once.

    make: Gives the function of one tangent; what tangents share is done in it.
    """
    return {
        PLAIN: lambda: one_after_the_other(make(), *rows),
        f"vmap({kind})": lambda: all_at_once(make(), *rows),
    }


def tangents(
    function: Callable[..., Tensor], primals: Primals, along: Primals, *, k: int
) -> dict[str, Way]:
    """Ways to the value's derivative along every tangent."""

    def move(*each: Tensor) -> Tensor:
        return jvp(function, primals, each)[1]

    return both("jvp", lambda: move, *(apart(t, k) for t in along))


def cotangents(
    function: Callable[..., Tensor], primals: Primals, grads: Tensor, *, k: int
) -> dict[str, Way]:
    """Ways to every cotangent pulled back to the primals; forward is run once."""
    return both("vjp", lambda: vjp(function, *primals)[1], apart(grads, k))


def second(
    function: Callable[..., Tensor],
    primals: Primals,
    grads: Tensor,
    delta: Tensor,
    along: Primals,
    *,
    k: int,
) -> dict[str, Way]:
    """Ways to the derivative of delta pulled back, along every tangent of primals and of delta."""

    def pull(delta: Tensor, *primals: Tensor) -> Any:
        return vjp(function, *primals)[1](delta)

    def bend(*each: Tensor) -> Any:
        return jvp(pull, (delta, *primals), each)[1]

    return both("jvp of vjp", lambda: bend, *(apart(t, k) for t in (grads, *along)))
