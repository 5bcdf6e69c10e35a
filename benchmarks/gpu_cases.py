"""The rows of gpu.py: every op at sizes of Llama's 1B and 7B models, beside plain PyTorch.

A row makes its inputs on a device and returns ways to one answer: "ours", "plain", and where torch
has a fused op of its own that as well. "truth", where plain is none, is compared and never timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp, vjp, vmap

from fudlr_ext import ops
from fudlr_ext.reference.rows import SCALE_BLOCK, decode

DECODER = torch.ops.fudlr_decoder
HALVES = (torch.bfloat16, torch.float16)
K = 4  # tangents a position
Way = Callable[[], Any]
Ways = dict[str, Way]


class Row(NamedTuple):
    """An op on one size in one dtype; bytes and operations are what must be moved and done once."""

    family: str
    op: str
    size: str
    dtype: torch.dtype
    build: Callable[[str], Ways]
    bytes: int
    operations: int
    tolerance: float = 1e-4

    def __str__(self) -> str:
        return f"{self.op}, {self.size}, {str(self.dtype).removeprefix('torch.')}"


def normal(device: str) -> Callable[..., Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return lambda *size: torch.randn(*size, generator=generator, device=device)


def samples(small: bool) -> Iterator[Row]:
    """Per-sample gradients of LoRA matrices: 32 samples of 256 positions, 8 vectors."""
    n, t, k = (3, 5, 2) if small else (32, 256, 8)
    for rank, wide in [(2, 9)] if small else [(8, 2048), (16, 4096), (64, 11008)]:
        for dtype in (torch.float32, torch.bfloat16):
            moved = n * t * (rank + wide) * dtype.itemsize
            outer, matrix = 2 * n * t * rank * wide, rank * wide
            for op, more, done in (
                ("sample_dots", 4 * k * (matrix + n), 2 * n * k * matrix),
                ("sample_grads", 4 * n * matrix, 0),
                ("grad_sum", 4 * (n + matrix), 0),
            ):
                build = partial(_samples, op, (n, t, k, rank, wide), dtype)
                yield Row(
                    "samples", op, f"{rank} × {wide}", dtype, build, moved + more, outer + done
                )


def _samples(op: str, size: tuple[int, ...], dtype: torch.dtype, device: str) -> Ways:
    n, t, k, rank, wide = size
    random = normal(device)
    left, right = (random(n * t, side).to(dtype) for side in (rank, wide))
    offsets = torch.arange(n + 1, device=device) * t
    a, b = left.view(n, t, -1), right.view(n, t, -1)
    vectors, weights = random(k, rank, wide), random(1, n)
    given, formula = {
        "sample_dots": ((vectors,), lambda g: torch.einsum("nab,kab->nk", g, vectors.to(g.dtype))),
        "sample_grads": ((), lambda g: g),
        "grad_sum": ((weights,), lambda g: torch.einsum("wn,nab->wab", weights.to(g.dtype), g)),
    }[op]
    return {
        "ours": lambda: ops.OPS[op](left, right, *given, offsets),
        "plain": lambda: formula(torch.bmm(a.transpose(1, 2), b).float()),
        "truth": lambda: formula(torch.bmm(a.double().transpose(1, 2), b.double())),
    }


def rows(small: bool) -> Iterator[Row]:
    """Products with stored rows and 8 vectors."""
    k = 2 if small else 8
    for n, p in [(7, SCALE_BLOCK)] if small else [(300_000, 2_048), (40_000, 16_384)]:
        for dtype in (torch.float32, torch.bfloat16, torch.int8):
            moved = n * p * dtype.itemsize + 4 * k * (n + p)
            for op, times in (("row_dots", 1), ("row_sums", 1), ("row_gram", 2)):
                build = partial(_rows, op, (n, p, k), dtype)
                yield Row(
                    "rows", op, f"{n} × {p}", dtype, build, moved, times * 2 * n * p * k, 5e-4
                )


def _rows(op: str, size: tuple[int, ...], dtype: torch.dtype, device: str) -> Ways:
    random, scales, (n, p, k) = normal(device), None, size
    stored = random(n, p)
    if dtype == torch.int8:
        scales = torch.rand(n, p // SCALE_BLOCK, device=device) / 64
        stored = (stored * 40).clamp(-127, 127)
    stored, vectors, weights = stored.to(dtype), random(k, p), random(k, n)

    def plain(real: torch.dtype) -> Any:
        g = decode(stored, scales, real)
        if op == "row_dots":
            return g @ vectors.to(real).t()
        if op == "row_sums":
            return weights.to(real) @ g
        dots = g @ vectors.to(real).t()
        return dots, dots.t() @ g

    given = {"row_dots": (vectors,), "row_sums": (weights,), "row_gram": (vectors, None)}[op]
    return {
        "ours": lambda: ops.OPS[op](stored, *given, scales),
        "plain": lambda: plain(torch.float32),
        "truth": lambda: plain(torch.float64),
    }


def catalogues(small: bool) -> Iterator[Row]:
    """A softmax over items for 1,024 users and 4 columns; the 10 highest scores."""
    n, c, top = (3, 2, 2) if small else (1_024, 4, 10)
    for m, w in [(29, 8)] if small else [(100_000, 4_096), (1_000_000, 64)]:
        for dtype in (torch.float32, torch.bfloat16):
            read, scores = m * w * dtype.itemsize + 4 * n * w, 2 * n * m * w
            mix = 2 * n * m * c
            for op, moved, done in (
                ("catalogue_mean", read + 4 * m * c, scores + mix),
                ("catalogue_mean and backward", 3 * read + 8 * m * c, 4 * scores + 2 * mix),
                ("catalogue_share", 2 * read + 4 * m * c, 2 * scores + mix),
                ("catalogue_top", read + 12 * n * top, scores),
            ):
                # A gradient in 16-bit items is rounded to them: 1.7e-3 by that alone.
                rounded = dtype in HALVES and op.endswith("backward")
                build = partial(_catalogue, op, (n, m, w, c, top), dtype)
                yield Row("catalogues", op, f"{m} × {w}", dtype, build, moved, done,
                          3e-3 if rounded else 1e-4)  # fmt: skip


def _catalogue(op: str, size: tuple[int, ...], dtype: torch.dtype, device: str) -> Ways:
    n, m, w, c, top = size
    random = normal(device)
    h, e = random(n, w), random(m, w).mul_(w**-0.5).to(dtype)
    # Values that depend on the items: of others the gradient in h would be what rounding leaves.
    values = (4 * e.float() @ random(w, c)).sigmoid()
    groups = (h[:, :c] > 0).float() / n

    def plain(real: torch.dtype) -> Any:
        users, items = h.to(real), e.to(real)
        if op == "catalogue_mean and backward":
            leaves = users.requires_grad_(), items.requires_grad_()
            mean = ((leaves[0] @ leaves[1].t()).softmax(1) @ values.to(real)).mean(0)
            return mean.detach(), *torch.autograd.grad(mean.sum(), leaves)
        scores = users @ items.t()
        if op == "catalogue_top":
            return scores.topk(top, 1)[0]
        if op == "catalogue_share":
            return scores.softmax(1).t() @ groups.to(real)
        return scores.softmax(1) @ values.to(real), scores.logsumexp(1)

    def with_gradients() -> Any:
        leaves = h.clone().requires_grad_(), e.detach().requires_grad_()
        mean = ops.catalogue_mean(*leaves, values)[0].mean(0)
        return mean.detach(), *torch.autograd.grad(mean.sum(), leaves)

    ours: Way = {
        "catalogue_mean": lambda: ops.catalogue_mean(h, e, values),
        "catalogue_mean and backward": with_gradients,
        "catalogue_share": lambda: ops.catalogue_share(h, e, groups),
        "catalogue_top": lambda: ops.catalogue_top(h, e, top)[0],
    }[op]
    return {
        "ours": ours,
        "plain": lambda: plain(torch.float32),
        "truth": lambda: plain(torch.float64),
    }


def derivatives(
    op: str, function: Callable[..., Tensor], primals: tuple[Tensor, ...], given: dict[str, Any]
) -> Way:
    """A decoder op in torch.func, all tangents at once; results have k rows a position."""

    def apart(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, K))

    def pull(delta: Tensor, *at: Tensor) -> Any:
        return vjp(function, *at)[1](delta)

    if op.endswith("tangent"):
        along = [apart(x) for x in given["along"]]

        def each(*moved: Tensor) -> Any:
            return jvp(function, primals, moved)[1]
    elif op.endswith("second"):
        along = [apart(x) for x in (given["grads"], *given["along"])]

        def each(*moved: Tensor) -> Any:
            return jvp(pull, (given["delta"], *primals), moved)[1]
    else:
        along, each = [apart(given["grads"])], vjp(function, *primals)[1]

    def way() -> Any:
        found = vmap(each, in_dims=1, out_dims=1)(*along)
        found = (found,) if isinstance(found, Tensor) else found
        return tuple(x.flatten(0, 1) for x in found)

    return way


def decoder(small: bool) -> Iterator[Row]:
    """Norms, gates and rotations of 4,096 positions, and their derivatives, in float32."""
    t = 5 if small else 4_096
    llama = [("Llama 1B", 2_048, 8_192), ("Llama 7B", 4_096, 11_008)]
    # Numbers of [T, w] moved once and once a tangent, and operations a number, likewise.
    work = {
        "rms_norm": (4, 0, 5, 0), "rms_norm_tangent": (1, 2, 0, 6),
        "rms_norm_backward": (1, 2, 0, 7), "rms_norm_backward, second": (2, 3, 2, 20),
        "swiglu": (3, 0, 5, 0),
        "swiglu_tangent": (2, 3, 8, 3), "swiglu_backward": (2, 3, 8, 3),
        "swiglu_backward, second": (3, 5, 14, 10), "rotate_heads": (0, 2, 0, 3),
    }  # fmt: skip
    for name, hidden, wide in [("small", 8, 10)] if small else llama:
        for op, (once, each, do_once, do_each) in work.items():
            w = wide if op.startswith("swiglu") else hidden
            build = partial(_decoder, op, t, w)
            yield Row("decoder", op, name, torch.float32, build, 4 * t * w * (once + each * K),
                      t * w * (do_once + do_each * K))  # fmt: skip


def _decoder(op: str, t: int, w: int, device: str) -> Ways:
    random, kind = normal(device), op.split("_", maxsplit=1)[0]
    if kind == "rotate":
        return _rotation(random, t, w)
    x, weight = random(t, 2 * w if kind == "swiglu" else w), random(w)
    out = (t * K, w)
    given = {"along": (random(t * K, x.shape[1]),), "grads": random(*out), "delta": random(t, w)}

    def norm(x: Tensor) -> Tensor:
        return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5))

    def gate(x: Tensor) -> Tensor:
        g, u = x.chunk(2, -1)
        return F.silu(g) * u

    function = gate if kind == "swiglu" else norm
    if op == "swiglu":
        return {"ours": lambda: DECODER.swiglu(x), "plain": lambda: gate(x)}
    if op == "rms_norm":
        added = random(t, w)
        return {
            "ours": lambda: DECODER.rms_norm(x, added, weight, 1e-5),
            "plain": lambda: (norm(x + added), None, x + added),
            "F.rms_norm": lambda: (F.rms_norm(x + added, (w,), weight, 1e-5), None, x + added),
        }
    call = getattr(DECODER, op.partition(",")[0])
    primal = (x,) if kind == "swiglu" else (x, weight, torch.rsqrt(x.square().mean(1) + 1e-5))
    second = (given["delta"], *given["along"]) if op.endswith("second") else ()
    if op.endswith("tangent"):
        rest: tuple[Any, ...] = given["along"]
    else:
        rest = (given["grads"], *(() if kind == "swiglu" or not second else (None,)), *second)
    plain = derivatives(op, function, (x,), given)
    return {"ours": lambda: call(*primal, *rest), "plain": plain}


def _rotation(random: Callable[..., Tensor], t: int, w: int) -> Ways:
    """In place: each call turns what the one before left, and what is compared is a copy."""
    x, angles = random(t * K, w), random(t, w // 8).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()

    def plain() -> Tensor:
        heads = x.view(t, K, -1, cos.shape[1])
        one, other = heads.chunk(2, -1)
        half = torch.cat([-other, one], -1)
        return (heads * cos[:, None, None] + half * sin[:, None, None]).view_as(x)

    def ours() -> Tensor:
        turned = x.clone()
        DECODER.rotate_heads(turned, cos, sin, False)
        return turned

    return {"ours": ours, "plain": plain}


class Heads(NamedTuple):
    """Causal attention of samples of equal length, with grouped queries."""

    heads: int
    key_heads: int
    width: int
    samples: int = 4
    length: int = 1_024


def attention(small: bool) -> Iterator[Row]:
    """Attention and its derivatives."""
    sizes = [Heads(4, 2, 4, 2, 5)] if small else [Heads(32, 8, 64), Heads(32, 32, 128)]
    # Products of 2 · width operations a pair of query and key seen, once and once a tangent, and
    # numbers of a query's and of a key's row moved, likewise.
    work = {
        "attention": ((2, 0), (2, 0), (2, 0)), "attention_tangent": ((1, 4), (1, 2), (2, 2)),
        "attention_backward": ((1, 4), (1, 2), (2, 2)),
        "attention_backward, second": ((2, 10), (2, 3), (2, 4)),
    }  # fmt: skip
    for size in sizes:
        positions = size.samples * size.length
        pairs = positions * (size.length + 1) // 2
        for dtype in (torch.float32, *(() if small else (torch.bfloat16,))):
            for op, numbers in work.items():
                products, queries, keys = (once + each * K for once, each in numbers)
                moved = positions * size.width * (queries * size.heads + keys * size.key_heads)
                yield Row(
                    "attention", op, f"{size.heads} / {size.key_heads} heads of {size.width}",
                    dtype,
                    partial(_attention, op, size, dtype), dtype.itemsize * moved,
                    products * 2 * size.width * pairs * size.heads,
                    5e-3 if dtype in HALVES else 1e-4,
                )  # fmt: skip


def _attention(op: str, size: Heads, dtype: torch.dtype, device: str) -> Ways:
    random, (heads, key_heads, width, n, length) = normal(device), size
    columns = [each * width for each in (heads, key_heads, key_heads)]

    def arrays(each: int) -> tuple[Tensor, ...]:
        return tuple(random(n * length * each, column).to(dtype) for column in columns)

    def split(q: Tensor, k: Tensor, v: Tensor, repeat: bool) -> list[Tensor]:
        found = [x.view(n, length, -1, width).transpose(1, 2) for x in (q, k, v)]
        return [x.repeat_interleave(heads // x.shape[1], 1) for x in found] if repeat else found

    def joined(out: Tensor) -> Tensor:
        return out.transpose(1, 2).flatten(2).flatten(0, 1)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = split(q, k, v, True)
        scores = (q @ k.transpose(2, 3)) * width**-0.5
        hidden = torch.ones(length, length, device=device).triu(1).bool()
        return joined(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v)

    def fused() -> Tensor:
        grouped = heads != key_heads
        parts = split(*primals, False)
        return joined(F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=grouped))

    primals, along = arrays(1), arrays(K)
    offsets = torch.arange(n + 1, device=device) * length
    limits = torch.arange(1, length + 1, device=device).repeat(n)
    given = (*primals, offsets, offsets, limits, heads, key_heads, width**-0.5)
    exact = tuple(x.float() for x in primals)
    if op == "attention":
        return {
            "ours": lambda: DECODER.attention(*given),
            "plain": lambda: plain(*exact),
            "F.sdpa": fused,
        }
    delta, grads = random(n * length, columns[0]).to(dtype), random(n * length * K, columns[0])
    grads = grads.to(dtype)
    rest = {
        "attention_tangent": along,
        "attention_backward": (grads,),
        "attention_backward, second": (grads, delta, *along),
    }[op]
    floats = {
        "along": tuple(x.float() for x in along),
        "grads": grads.float(),
        "delta": delta.float(),
    }
    call = getattr(DECODER, op.partition(",")[0])
    return {"ours": lambda: call(*given, *rest), "plain": derivatives(op, plain, exact, floats)}


FAMILIES: dict[str, Callable[[bool], Iterator[Row]]] = {
    "rows": rows, "catalogues": catalogues, "attention": attention, "decoder": decoder,
    "samples": samples,
}  # fmt: skip
"""In the order of the run."""
