"""Causal attention with grouped queries, its derivative along k tangents, and its backward."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fudlr_ext import ops  # noqa: F401  registers torch.ops.fudlr_decoder
from gpu_cases.case import HALVES, Case, Way, Ways, Work, normal, ways
from gpu_cases.derivatives import apart, cotangents, second, tangents

OPS = torch.ops.fudlr_decoder


class Attention(NamedTuple):
    """Samples of equal length, which need no padding in torch; heads, k tangents a position."""

    name: str
    heads: int
    key_heads: int
    width: int
    samples: int = 4
    length: int = 1_024
    k: int = 4


SIZES = (Attention("Llama 1B", 32, 8, 64), Attention("Llama 7B", 32, 32, 128))


def small(size: Attention) -> Attention:
    return size._replace(
        heads=4, key_heads=size.key_heads // 8, width=size.width // 16, samples=2, length=5, k=2
    )


# Of every op: products of 2 · width operations a pair of query and key that it sees, once and for
# every tangent; scores count once, though kernels that keep none make them again. And numbers of a
# query's and of a key's row moved, once and for every tangent.
WORK = {
    "attention": ((2, 0), (2, 0), (2, 0)),
    "attention_tangent": ((1, 4), (1, 2), (2, 2)),
    "attention_backward": ((1, 4), (1, 2), (2, 2)),
    "attention_backward, second": ((2, 10), (2, 3), (2, 4)),
}


def work(op: str, size: Attention, itemsize: int) -> Work:
    products, queries, keys = (once + each * size.k for once, each in WORK[op])
    positions = size.samples * size.length
    pairs = positions * (size.length + 1) // 2
    moved = positions * size.width * (queries * size.heads + keys * size.key_heads)
    return Work(
        itemsize * moved, products * 2 * size.width * pairs * size.heads,
        f"T w ({queries} H + {keys} K) s bytes, T (t + 1) / 2 · H · {products} · 2 w operations",
    )  # fmt: skip


class Heads:
    """Attention in torch on rows [T, heads · width] of samples one after the other."""

    def __init__(self, size: Attention, device: str) -> None:
        self.size = size
        self.hidden = torch.ones(size.length, size.length, device=device).triu(1).bool()

    def apart(self, rows: Tensor, heads: int) -> Tensor:
        """[samples, heads, length, width]."""
        split = rows.view(self.size.samples, self.size.length, heads, self.size.width)
        return split.transpose(1, 2)

    def split(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = self.size
        return (
            self.apart(q, size.heads), self.apart(k, size.key_heads), self.apart(v, size.key_heads)
        )  # fmt: skip

    def joined(self, out: Tensor) -> Tensor:
        return out.transpose(1, 2).flatten(2).flatten(0, 1)

    def plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """With all scores; for 16-bit rows in float32."""
        group = self.size.heads // self.size.key_heads
        q, k, v = (x.float() for x in self.split(q, k, v))
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = (q @ k.transpose(2, 3)) * self.size.width**-0.5
        return self.joined(scores.masked_fill(self.hidden, -torch.inf).softmax(-1) @ v)

    def fused(self, repeat: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Torch's choice among its kernels, some of which want a key's head repeated."""
        q, k, v = self.split(q, k, v)
        grouped = self.size.heads != self.size.key_heads
        if grouped and repeat:
            k, v = (x.repeat_interleave(self.size.heads // x.shape[1], 1) for x in (k, v))
        found = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=grouped and not repeat
        )
        return self.joined(found)

    @property
    def kinds(self) -> dict[str, bool]:
        """Names of `fused`, and whether heads are repeated."""
        names = {"F.sdpa": False, "F.sdpa, heads repeated": True}
        return names if self.size.heads != self.size.key_heads else {"F.sdpa": False}

    def fused_backward(self, primals: tuple[Tensor, ...], grads: Tensor) -> dict[str, Way]:
        """Autograd of `fused`, a cotangent at a time: all of it, and without its forward pass."""
        leaves = [x.detach().requires_grad_() for x in primals]
        each = apart(grads, self.size.k).unbind(1)

        def pull(out: Tensor) -> tuple[Tensor, ...]:
            found = [torch.autograd.grad(out, leaves, g, retain_graph=True) for g in each]
            return tuple(torch.stack(x, 1).flatten(0, 1) for x in zip(*found, strict=True))

        found: dict[str, Way] = {}
        for name, repeat in self.kinds.items():
            found[name] = lambda repeat=repeat: pull(self.fused(repeat, *leaves))
            found[f"{name}, backward alone"] = partial(pull, self.fused(repeat, *leaves))
        return found


def build(op: str, size: Attention, dtype: torch.dtype, device: str) -> Ways:
    random = normal(device)
    heads = Heads(size, device)
    positions, k = size.samples * size.length, size.k
    columns = [each * size.width for each in (size.heads, size.key_heads, size.key_heads)]

    def arrays(rows: int) -> tuple[Tensor, ...]:
        return tuple(random(rows, column).to(dtype) for column in columns)

    primals = arrays(positions)
    offsets = torch.arange(size.samples + 1, device=device) * size.length
    limits = torch.arange(1, size.length + 1, device=device).repeat(size.samples)
    given = (
        *primals, offsets, offsets, limits, size.heads, size.key_heads, size.width**-0.5
    )  # fmt: skip
    exact = tuple(x.float() for x in primals)
    if op == "attention":
        fused = {name: partial(heads.fused, each, *primals) for name, each in heads.kinds.items()}
        ours = partial(OPS.attention, *given)
        return ways({"ours": ours, "plain": partial(heads.plain, *primals), **fused})
    if op == "attention_tangent":
        along = arrays(positions * k)
        ours = partial(OPS.attention_tangent, *given, *along)
        floats = tuple(x.float() for x in along)
        return ways({"ours": ours, **tangents(heads.plain, exact, floats, k=k)})
    grads = random(positions * k, columns[0]).to(dtype)
    if op == "attention_backward":
        ours = partial(OPS.attention_backward, *given, grads)
        timed = {"ours": ours, **cotangents(heads.plain, exact, grads.float(), k=k)}
        return ways({**timed, **heads.fused_backward(primals, grads)})
    delta, along = random(positions, columns[0]).to(dtype), arrays(positions * k)
    ours = partial(OPS.attention_backward, *given, grads, delta, *along)
    floats = tuple(x.float() for x in along)
    rivals = second(heads.plain, exact, grads.float(), delta.float(), floats, k=k)
    return ways({"ours": ours, **rivals})


def cases(size: Attention) -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        refused = "on the CPU attention takes float32 and float64" if dtype in HALVES else ""
        for op in WORK:
            yield Case(
                op, size, dtype, partial(build, op, size, dtype),
                work(op, size, dtype.itemsize), 5e-3 if dtype in HALVES else 1e-4,
                cpu_refuses=refused,
            )  # fmt: skip
