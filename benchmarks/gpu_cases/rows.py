"""Products with stored rows G [n, p]: float32, bfloat16, int8 with scales."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from fudlr.gradients.store.shards import SCALE_BLOCK
from torch import Tensor

from fudlr_ext import ops
from gpu_cases.case import TRUTH, Case, Ways, Work, normal, ways


class Rows(NamedTuple):
    """n rows of p numbers, k vectors or weightings; a torch loop takes `tile` rows at a time."""

    name: str
    rows: int
    dim: int
    vectors: int
    tile: int = 16_384


SIZES = (
    Rows("300,000 × 2,048, 1 vector", 300_000, 2_048, 1),
    Rows("300,000 × 2,048, 8 vectors", 300_000, 2_048, 8),
    Rows("40,000 × 16,384, 8 vectors", 40_000, 16_384, 8),
)


def small(size: Rows) -> Rows:
    dim = SCALE_BLOCK * (1 + size.dim // 16_384)
    return size._replace(rows=7, dim=dim, vectors=min(2, size.vectors), tile=3)


def decoded(codes: Tensor, scales: Tensor | None) -> Tensor:
    """Rows as float32, on their device; of whole blocks of columns."""
    if scales is None:
        return codes.float()
    blocks = codes.view(len(codes), -1, SCALE_BLOCK)
    return (blocks * scales[..., None]).flatten(1)


def torch_gram(codes: Tensor, scales: Tensor | None, v: Tensor, tile: int) -> Tensor:
    """Gᵀ(G Vᵀ) in torch, as fast as it was found to go: tiles as float32, two GEMMs a tile."""
    total = torch.zeros(v.shape, dtype=torch.float64, device=v.device)
    for start in range(0, codes.shape[0], tile):
        cut = slice(start, start + tile)
        part = codes[cut]
        if part.dtype != torch.float32:
            part = decoded(part, None if scales is None else scales[cut])
        total += (part @ v.T).T @ part
    return total


def work(op: str, size: Rows, dtype: torch.dtype) -> Work:
    n, p, k = size.rows, size.dim, size.vectors
    scales = 4 * n * p // SCALE_BLOCK if dtype == torch.int8 else 0
    stored = n * p * dtype.itemsize + scales
    rows = "n p s" + (f" + n p / {SCALE_BLOCK // 4}" if scales else "")
    if op == "row_dots":
        return Work(
            stored + 4 * k * (n + p), 2 * n * p * k,
            f"{rows} + 4 k (n + p) bytes, 2 n p k operations",
        )  # fmt: skip
    if op == "row_sums":
        return Work(
            stored + 4 * k * n + 8 * k * p, 2 * n * p * k,
            f"{rows} + 4 k n + 8 k p bytes, 2 n p k operations",
        )  # fmt: skip
    return Work(
        stored + 4 * k * (n + p) + 8 * k * p, 4 * n * p * k,
        f"{rows} + 4 k (n + p) + 8 k p bytes, 4 n p k operations",
    )  # fmt: skip


def build(op: str, size: Rows, dtype: torch.dtype, device: str) -> Ways:
    random = normal(device)
    scales = None
    if dtype == torch.int8:
        # Codes of normal numbers whose largest in a block is some three times their deviation.
        codes = (random(size.rows, size.dim) * 40).clamp_(-127, 127).to(dtype)
        scales = random(size.rows, size.dim // SCALE_BLOCK).abs_()
    else:
        codes = random(size.rows, size.dim).to(dtype)
    vectors, weights = random(size.vectors, size.dim), random(size.vectors, size.rows)

    def dots(g: Tensor) -> Tensor:
        return g @ vectors.t().to(g.dtype)

    def sums(g: Tensor) -> Tensor:
        return weights.to(g.dtype) @ g

    def gram(g: Tensor) -> tuple[Tensor, Tensor]:
        products = dots(g)
        return products, products.t() @ g

    ours, used = {
        "row_dots": (lambda: ops.row_dots(codes, vectors, scales), dots),
        "row_sums": (lambda: ops.row_sums(codes, weights, scales), sums),
        "row_gram": (lambda: ops.row_gram(codes, vectors, None, scales), gram),
    }[op]
    timed = {"ours": ours, "plain": lambda: used(decoded(codes, scales))}
    if op == "row_gram":
        timed["tiles"] = lambda: (None, torch_gram(codes, scales, vectors, size.tile))
    if dtype != torch.float32:
        # As one does who has two or four times the memory: no time is spent on decoding.
        timed["rows kept as float32"] = partial(used, decoded(codes, scales))
    return ways(timed, {TRUTH: lambda: used(decoded(codes, scales).double())})


def cases(size: Rows) -> Iterator[Case]:
    for op in ("row_dots", "row_sums", "row_gram"):
        for dtype in (torch.float32, torch.bfloat16, torch.int8):
            build_rows = partial(build, op, size, dtype)
            yield Case(op, size, dtype, build_rows, work(op, size, dtype))
