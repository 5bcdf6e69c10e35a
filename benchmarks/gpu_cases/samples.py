"""Per-sample gradients of LoRA matrices, their products and sums."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fudlr_ext import ops
from gpu_cases.case import TRUTH, Case, Way, Ways, Work, normal, ways


class Layer(NamedTuple):
    """A LoRA matrix [rank, wide], samples of as many positions, and how many vectors."""

    name: str
    wide: int
    rank: int
    samples: int = 32
    positions: int = 256
    vectors: int = 8
    dtypes: tuple[str, ...] = ("float32", "bfloat16")


LAYERS = (("1B hidden", 2048), ("1B feed-forward", 8192), ("7B hidden", 4096), ("7B ff", 11008))
SIZES = (
    *(
        Layer(f"{name}, rank {rank}", wide, rank)
        for name, wide in LAYERS
        for rank in (8, 16, 64)
    ),
    Layer("7B hidden, rank 16", 4096, 16, dtypes=("float16",)),
)  # fmt: skip


def small(size: Layer) -> Layer:
    return size._replace(
        wide=size.wide // 256, rank=size.rank // 4, samples=3, positions=5, vectors=2
    )


OPS = ("sample_dots", "sample_grads", "grad_sum")


def work(op: str, size: Layer, itemsize: int) -> Work:
    n, a, b, k = size.samples, size.rank, size.wide, size.vectors
    t = n * size.positions
    read, outer = t * (a + b) * itemsize, 2 * t * a * b
    if op == "sample_dots":
        return Work(
            read + 4 * k * (a * b + n),
            outer + 2 * n * k * a * b,
            "T (a + b) s + 4 k (a b + n) bytes, 2 T a b + 2 n k a b operations",
        )
    if op == "sample_grads":
        return Work(read + 4 * n * a * b, outer, "T (a + b) s + 4 n a b bytes, 2 T a b operations")
    return Work(
        read + 4 * (n + a * b), outer, "T (a + b) s + 4 (n + a b) bytes, 2 T a b operations"
    )


def build(op: str, size: Layer, dtype: torch.dtype, device: str) -> Ways:
    n, t = size.samples, size.positions
    random = normal(device)
    left, right = (random(n * t, side).to(dtype) for side in (size.rank, size.wide))
    offsets = torch.arange(n + 1, device=device) * t
    a, b = left.view(n, t, -1), right.view(n, t, -1)

    def loss(matrix: Tensor, one_a: Tensor, one_b: Tensor) -> Tensor:  # its gradient is G_i
        return ((one_b @ matrix.t()) * one_a).sum()

    def exact() -> Tensor:
        return use(torch.bmm(a.double().transpose(1, 2), b.double()))

    matrix = torch.zeros(size.rank, size.wide, device=device, dtype=dtype)
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

    def batched() -> Tensor:
        return torch.bmm(a.transpose(1, 2), b).float()

    def mapped() -> Tensor:
        return per_sample(matrix, a, b).float()

    more: dict[str, Way] = {}
    if op == "sample_dots":
        vectors = random(size.vectors, size.rank, size.wide)
        flat = vectors.flatten(1).t()
        ours = partial(ops.sample_dots, left, right, vectors, offsets)

        def use(grads: Tensor) -> Tensor:
            return grads.flatten(1) @ flat.to(grads.dtype)

        more["batch of one"] = lambda: torch.cat(
            [use((x.t() @ y).float()[None]) for x, y in zip(a, b, strict=True)]
        )
    elif op == "sample_grads":
        ours = partial(ops.sample_grads, left, right, offsets)

        def use(grads: Tensor) -> Tensor:
            return grads
    else:
        weights = random(1, n)
        ours = partial(ops.grad_sum, left, right, weights, offsets)

        def use(grads: Tensor) -> Tensor:
            return torch.einsum("wn,nab->wab", weights.to(grads.dtype), grads)

        # One product over all positions: what there is to do where there is one weighting.
        per_position = weights[0].repeat_interleave(t)[:, None]
        more["weighted factors"] = lambda: ((left * per_position).to(dtype).t() @ right)[None]
    timed = {"ours": ours, "plain": lambda: use(batched()), "vmap(grad)": lambda: use(mapped())}
    return ways(timed | more, {TRUTH: exact})


def cases(size: Layer) -> Iterator[Case]:
    for name in size.dtypes:
        dtype = getattr(torch, name)
        refused = "on the CPU the sample ops take no float16" if name == "float16" else ""
        for op in OPS:
            yield Case(
                op, size, dtype, partial(build, op, size, dtype),
                work(op, size, dtype.itemsize), cpu_refuses=refused,
            )  # fmt: skip
