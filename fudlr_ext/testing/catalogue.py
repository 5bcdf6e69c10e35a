"""The ops on a catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fudlr_ext import reference
from fudlr_ext.testing.case import Arguments, OpCase, result_dtype

SCALE = 0.7  # of the scores: no power of two, so that one that is lost shows


@dataclass(frozen=True)
class CatalogueShape:
    """n users, M items, width w, c values or weights or items of a list."""

    n: int
    m: int
    w: int
    c: int = 3

    def __str__(self) -> str:
        return f"n{self.n}-m{self.m}-w{self.w}-c{self.c}"


def _seen(shape: CatalogueShape, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Up to half of the items of each user but what a list needs, unsorted; the first has none."""
    most = max(0, min(shape.m // 2, shape.m - shape.c))
    counts = torch.randint(0, most + 1, (shape.n,), generator=generator).tolist()
    counts[:1] = [0] * len(counts[:1])
    listed = [torch.randperm(shape.m, generator=generator)[:count] for count in counts]
    return torch.tensor([0, *accumulate(counts)]), torch.cat([*listed, torch.empty(0)]).long()


def _make(
    shape: CatalogueShape, dtype: torch.dtype, seed: int = 0, *, third: str, seen: bool
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)

    def random(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    kind = result_dtype(dtype)
    users = random(shape.n, shape.w).to(kind)
    items = random(shape.m, shape.w).to(dtype)
    hidden = _seen(shape, generator) if seen else (None, None)
    if third == "k":
        return users, items, min(shape.c, shape.m), *hidden
    lines = random(shape.m if third == "values" else shape.n, shape.c).to(kind)
    return users, items, lines, SCALE, *hidden


def _part(arguments: Arguments, start: int, stop: int) -> Arguments:
    users, *rest, offsets, listed = arguments
    return users[start:stop], *rest, None if offsets is None else offsets[start : stop + 1], listed


def softmax_sizes(users: Tensor, items: Tensor, scale: float, hidden: Any) -> tuple[Any, ...]:
    """p, the sizes of the scores' terms |s| [n, M], and log Σ exp: a score's rounding moves p by
    p times that."""
    _, lse = reference.catalogue_mean(users, items, items[:, :0], scale, *hidden)
    one = torch.eye(users.shape[0], dtype=users.dtype)
    p = reference.catalogue_share(users, items, one, scale, *hidden).t()
    return p, abs(scale) * (users.abs() @ items.abs().t()), lse


def _mean_sizes(
    users: Tensor, items: Tensor, values: Tensor, scale: float, *hidden: Any
) -> tuple[Tensor, Tensor]:
    p, sizes, lse = softmax_sizes(users, items, scale, hidden)
    return (p * (1 + sizes)) @ values.abs(), (p * sizes).sum(1) + lse.abs()


def _share_sizes(
    users: Tensor, items: Tensor, weights: Tensor, scale: float, *hidden: Any
) -> Tensor:
    p, sizes, _ = softmax_sizes(users, items, scale, hidden)
    return (p * (1 + sizes)).t() @ weights.abs()


def _top_sizes(users: Tensor, items: Tensor, k: int, *hidden: Any) -> tuple[Tensor, Tensor]:
    return reference.catalogue_top(users.abs(), items.abs(), k)


# Tiles hold 240 items and 128 users, chunks 960 items; registers 4, 8 or 16 numbers.
SHAPES = (
    CatalogueShape(0, 3, 4),
    CatalogueShape(2, 1, 1, 1),
    CatalogueShape(2, 5, 0, 2),
    CatalogueShape(3, 4, 3, 0),
    CatalogueShape(1, 7, 8, 1),
    CatalogueShape(5, 239, 15, 4),
    CatalogueShape(4, 240, 16, 5),
    CatalogueShape(7, 241, 17),
    CatalogueShape(128, 30, 47, 2),
    CatalogueShape(129, 31, 48, 7),
    CatalogueShape(131, 961, 31, 1),
    CatalogueShape(3, 1999, 64, 9),
)
_case = partial(
    OpCase,
    shapes=SHAPES,
    small=(CatalogueShape(3, 5, 2, 2), CatalogueShape(1, 4, 3, 1)),
    large=CatalogueShape(131, 2000, 20, 4),
    twice=False,
)


def _with_and_without_seen(case: Any, third: str, **more: Any) -> tuple[OpCase, ...]:
    return tuple(
        case(make=partial(_make, third=third, seen=seen), variant=variant, **more)
        for seen, variant in ((False, "all"), (True, "unseen"))
    )


CASES = (
    *_with_and_without_seen(
        partial(_case, "catalogue_mean", reference.catalogue_mean),
        "values",
        differentiable=(0, 1, 2),
        part=_part,
        results=lambda dtype: (result_dtype(dtype),) * 2,
        magnitude=_mean_sizes,
    ),
    *_with_and_without_seen(
        partial(_case, "catalogue_share", reference.catalogue_share),
        "weights",
        differentiable=(0, 1, 2),
        magnitude=_share_sizes,
    ),
    *_with_and_without_seen(
        partial(_case, "catalogue_top", reference.catalogue_top),
        "k",
        differentiable=(),
        part=_part,
        results=lambda dtype: (result_dtype(dtype), torch.int64),
        magnitude=_top_sizes,
    ),
)
