"""Norms, gates and rotations of decoder layers, and their derivatives, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fudlr_ext import ops  # noqa: F401  registers torch.ops.fudlr_decoder
from gpu_cases.case import Case, Way, Ways, Work, normal, ways
from gpu_cases.derivatives import cotangents, second, tangents

OPS = torch.ops.fudlr_decoder
EPS = 1e-5


class Layer(NamedTuple):
    """A decoder layer's sizes, T positions, k tangents a position."""

    name: str
    hidden: int
    wide: int
    heads: int
    width: int
    positions: int = 4_096
    k: int = 4


SIZES = (Layer("Llama 1B", 2_048, 8_192, 32, 64), Layer("Llama 7B", 4_096, 11_008, 32, 128))


def small(size: Layer) -> Layer:
    return size._replace(
        hidden=size.hidden // 256, wide=size.wide // 1_024, heads=2, width=size.width // 16,
        positions=5, k=2,
    )  # fmt: skip


Random = Callable[..., Tensor]


def norms(op: str, size: Layer, random: Random) -> dict[str, Way]:
    t, w, k = size.positions, size.hidden, size.k
    x, weight = random(t, w), random(w)

    def norm(x: Tensor) -> Tensor:
        return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS))

    if op == "rms_norm":
        added = random(t, w)

        def plain() -> tuple[Tensor, Tensor, Tensor]:
            total = x + added
            scale = torch.rsqrt(total.square().mean(-1, keepdim=True) + EPS)
            return weight * (total * scale), scale[:, 0], total

        def fused() -> tuple[Tensor, None, Tensor]:
            total = x + added
            return F.rms_norm(total, (w,), weight, EPS), None, total

        ours = partial(OPS.rms_norm, x, added, weight, EPS)
        return {"ours": ours, "plain": plain, "F.rms_norm": fused}
    scale = torch.rsqrt(x.square().mean(1) + EPS)
    dx, grads, delta = random(t * k, w), random(t * k, w), random(t, w)
    if op == "rms_norm_tangent":
        ours = partial(OPS.rms_norm_tangent, x, weight, scale, dx)
        return {"ours": ours, **tangents(norm, (x,), (dx,), k=k)}
    if op == "rms_norm_backward":
        ours = partial(OPS.rms_norm_backward, x, weight, scale, grads)
        return {"ours": ours, **cotangents(norm, (x,), grads, k=k)}
    ours = partial(OPS.rms_norm_backward, x, weight, scale, grads, None, delta, dx)
    return {"ours": ours, **second(norm, (x,), grads, delta, (dx,), k=k)}


def gates(op: str, size: Layer, random: Random) -> dict[str, Way]:
    t, w, k = size.positions, size.wide, size.k
    gu = random(t, 2 * w)

    def swiglu(gu: Tensor) -> Tensor:
        g, u = gu.chunk(2, -1)
        return F.silu(g) * u

    if op == "swiglu":
        return {"ours": partial(OPS.swiglu, gu), "plain": partial(swiglu, gu)}
    if op == "swiglu_tangent":
        dgu = random(t * k, 2 * w)
        ours = partial(OPS.swiglu_tangent, gu, dgu)
        return {"ours": ours, **tangents(swiglu, (gu,), (dgu,), k=k)}
    grads = random(t * k, w)
    if op == "swiglu_backward":
        ours = partial(OPS.swiglu_backward, gu, grads)
        return {"ours": ours, **cotangents(swiglu, (gu,), grads, k=k)}
    delta, dgu = random(t, w), random(t * k, 2 * w)
    ours = partial(OPS.swiglu_backward, gu, grads, delta, dgu)
    return {"ours": ours, **second(swiglu, (gu,), grads, delta, (dgu,), k=k)}


def rotations(op: str, size: Layer, random: Random) -> tuple[dict[str, Way], dict[str, Way]]:
    """In place: each call turns what the one before left, and what is compared is a copy."""
    inverse = op.endswith("back")
    x = random(size.positions * size.k, size.heads * size.width)
    angles = random(size.positions, size.width // 2).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()

    def plain() -> Tensor:
        heads = x.view(size.positions, size.k, size.heads, size.width)
        one, other = heads.chunk(2, -1)
        half = torch.cat([other, -one] if inverse else [-other, one], -1)
        return (heads * cos[:, None, None] + half * sin[:, None, None]).view_as(x)

    def turned() -> Tensor:
        copy = x.clone()
        OPS.rotate_heads(copy, cos, sin, inverse)
        return copy

    timed = {"ours": partial(OPS.rotate_heads, x, cos, sin, inverse), "plain": plain}
    return timed, {"ours": turned}


# Of every op: numbers of [T, w] moved once, and once a tangent, and operations a number of [T, w],
# once and once a tangent; w the hidden size, or the wide one of gates.
WORK = {
    "rms_norm": (4, 0, 5, 0),
    "rms_norm_tangent": (1, 2, 0, 6),
    "rms_norm_backward": (1, 2, 0, 7),
    "rms_norm_backward, second": (2, 3, 2, 20),
    "swiglu": (3, 0, 5, 0),
    "swiglu_tangent": (2, 3, 8, 3),
    "swiglu_backward": (2, 3, 8, 3),
    "swiglu_backward, second": (3, 5, 14, 10),
    "rotate_heads": (0, 2, 0, 3),
    "rotate_heads back": (0, 2, 0, 3),
}


def work(op: str, size: Layer) -> Work:
    once, each, do_once, do_each = WORK[op]
    w = size.hidden if op.startswith("rms_norm") else size.wide
    if op.startswith("rotate"):
        w = size.heads * size.width
    t, k = size.positions, size.k
    return Work(
        4 * t * w * (once + each * k), t * w * (do_once + do_each * k),
        f"4 T w ({once} + {each} k) bytes, T w ({do_once} + {do_each} k) operations",
    )  # fmt: skip


def build(op: str, size: Layer, device: str) -> Ways:
    random = normal(device)
    if op.startswith("rotate"):
        return ways(*rotations(op, size, random))
    return ways((norms if op.startswith("rms_norm") else gates)(op, size, random))


def cases(size: Layer) -> Iterator[Case]:
    for op in WORK:
        yield Case(op, size, torch.float32, partial(build, op, size), work(op, size))
