"""Expectations over a catalogue, with gradients; shares of its items; its highest scores."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import catalogue
import torch
from catalogue import TOP, Chunks, chunked, chunked_mean, chunked_top
from torch import Tensor

from fudlr_ext import ops
from gpu_cases.case import HALVES, TRUTH, Case, Way, Ways, Work, ways


class Catalogue(NamedTuple):
    """n users over M items of a width; torch in chunks takes `chunk` items at a time, or 4 times
    as many."""

    name: str
    users: int
    items: int
    width: int
    columns: int = catalogue.COLUMNS
    chunk: int = 8_192


SIZES = (
    Catalogue("100,000 items × 4,096", 1_024, 100_000, 4_096),
    Catalogue("1,000,000 items × 64", 1_024, 1_000_000, 64),
)


def small(size: Catalogue) -> Catalogue:
    return size._replace(users=3, items=20 + size.items // 100_000, width=8, chunk=7)


OPS = ("catalogue_mean", "catalogue_mean and backward", "catalogue_share", "catalogue_top")


def work(op: str, size: Catalogue, itemsize: int) -> Work:
    n, m, w, c = size.users, size.items, size.width, size.columns
    read = m * w * itemsize + 4 * n * w
    scores = 2 * n * m * w
    if op == "catalogue_mean":
        return Work(
            read + 4 * (m * c + n * (c + 1)), scores + 2 * n * m * c,
            "M w s + 4 (n w + M c + n (c + 1)) bytes, 2 n M (w + c) operations",
        )  # fmt: skip
    if op == "catalogue_share":  # every item wants the users' whole sums first: scores twice
        return Work(
            2 * read + 4 * (n * c + m * c), 2 * scores + 2 * n * m * c,
            "2 (M w s + 4 n w) + 4 (n + M) c bytes, 2 n M (2 w + c) operations",
        )  # fmt: skip
    if op == "catalogue_top":
        return Work(
            read + 12 * n * TOP, scores, f"M w s + 4 n w + 12 n {TOP} bytes, 2 n M w operations"
        )
    return Work(
        3 * read + 8 * m * c, 4 * scores + 4 * n * m * c,
        "3 (M w s + 4 n w) + 8 M c bytes, 4 n M (2 w + c) operations: scores twice, no n × M kept",
    )  # fmt: skip


def means(
    h: Tensor, e: Tensor, c: Tensor, weights: Tensor, size: Catalogue
) -> tuple[dict[str, Way], dict[str, Way]]:
    """Ways to p C [n, c] and log Σ exp [n]."""

    def by_chunks(chunk: int, h: Tensor = h, c: Tensor = c) -> tuple[Tensor, Tensor]:
        mean, lse = chunked_mean(Chunks(h, e, chunk), c)
        return mean, lse[:, 0]

    timed = {
        "ours": lambda: ops.catalogue_mean(h, e, c),
        "plain": lambda: ((h @ e.to(h.dtype).t()).softmax(1) @ c, None),
    }
    for chunk in (size.chunk, 4 * size.chunk):
        timed[f"chunks of {chunk}"] = partial(by_chunks, chunk)
    if e.dtype in HALVES:
        timed["scores as the items"] = lambda: (
            (h.to(e.dtype) @ e.t()).float().softmax(1) @ c,
            None,
        )
    return timed, {TRUTH: lambda: by_chunks(size.chunk, h.double(), c.double())}


def gradients(
    h: Tensor, e: Tensor, c: Tensor, weights: Tensor, size: Catalogue
) -> tuple[dict[str, Way], dict[str, Way]]:
    """Ways to the mean over users, and its gradients in h and E."""
    given = (h, e, c, weights)
    timed: dict[str, Way] = {
        "ours": partial(catalogue.ours, *given),
        "plain": partial(catalogue.full, *given),
    }
    for chunk in (size.chunk, 4 * size.chunk):
        timed[f"chunks of {chunk}"] = partial(chunked, *given, chunk)
    if e.dtype in HALVES:

        def narrow(h: Tensor, e: Tensor) -> Tensor:
            return (h.to(e.dtype) @ e.t()).float().softmax(1) @ c

        timed["scores as the items"] = lambda: catalogue.with_autograd(h, e, weights, narrow)
    return timed, {TRUTH: lambda: chunked(*(x.double() for x in given), size.chunk)}


def shares(
    h: Tensor, e: Tensor, c: Tensor, weights: Tensor, size: Catalogue
) -> tuple[dict[str, Way], dict[str, Way]]:
    """Ways to pᵀ W [M, c] for groups of users."""
    groups = (h[:, : c.shape[1]] > 0).to(h.dtype) / len(h)

    def by_chunks(chunk: int, h: Tensor = h, groups: Tensor = groups) -> Tensor:
        chunks = Chunks(h, e, chunk)
        _, lse = chunked_mean(chunks, h.new_empty(len(e), 0))
        share = h.new_empty(len(e), groups.shape[1])
        for scores, _, cut in chunks:
            torch.mm(scores.sub_(lse).exp_().t(), groups, out=share[cut])
        return share

    timed = {
        "ours": lambda: ops.catalogue_share(h, e, groups),
        "plain": lambda: (h @ e.to(h.dtype).t()).softmax(1).t() @ groups,
    }
    for chunk in (size.chunk, 4 * size.chunk):
        timed[f"chunks of {chunk}"] = partial(by_chunks, chunk)
    if e.dtype in HALVES:
        timed["scores as the items"] = lambda: (
            (h.to(e.dtype) @ e.t()).float().softmax(1).t() @ groups
        )
    return timed, {TRUTH: lambda: by_chunks(size.chunk, h.double(), groups.double())}


def tops(
    h: Tensor, e: Tensor, c: Tensor, weights: Tensor, size: Catalogue
) -> tuple[dict[str, Way], dict[str, Way]]:
    """Ways to the highest items; compared by their scores, since close ones may change places."""

    def scores_of(top: Tensor) -> Tensor:
        return torch.einsum("nw,nkw->nk", h, e[top].to(h.dtype))

    def full(h: Tensor = h) -> tuple[Tensor, Tensor]:
        return (h @ e.to(h.dtype).t()).topk(TOP, 1)

    def rescored(way: Way) -> tuple[Tensor, Tensor]:
        scores, top = way()
        return scores, scores_of(top)

    def by_chunks(chunk: int) -> tuple[None, Tensor]:
        return None, chunked_top(h, e, chunk)

    timed = {"ours": lambda: ops.catalogue_top(h, e, TOP), "plain": full}
    for chunk in (size.chunk, 4 * size.chunk):
        timed[f"chunks of {chunk}"] = partial(by_chunks, chunk)
    if e.dtype in HALVES:
        timed["scores as the items"] = lambda: (h.to(e.dtype) @ e.t()).topk(TOP, 1)
    checked = {name: partial(rescored, way) for name, way in timed.items()}
    return timed, {TRUTH: partial(rescored, lambda: full(h.double())), **checked}


WAYS = dict(zip(OPS, (means, gradients, shares, tops), strict=True))


def build(op: str, size: Catalogue, dtype: torch.dtype, device: str) -> Ways:
    given = catalogue.inputs(size.users, size.items, size.width, dtype, device)
    return ways(*WAYS[op](*given, size))


def cases(size: Catalogue) -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for op in OPS:
            # A gradient in bfloat16 items is rounded to bfloat16: 1.7e-3 by that alone.
            rounded = dtype in HALVES and op.endswith("backward")
            yield Case(
                op, size, dtype, partial(build, op, size, dtype),
                work(op, size, dtype.itemsize), 3e-3 if rounded else 1e-4,
            )  # fmt: skip
