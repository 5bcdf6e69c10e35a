"""Scores that are products of a row for each prompt and a row for each item, not yet multiplied.

    s_im = link(h_i · e_m),   h [n, w], e [M, w]

n (w + M w / n) numbers stand for n M. What is made of them tile by tile is in `fudlr.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Link = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Factors:
    """Scores of n prompts over M items.

    Attributes:
        users: h [n, w], float32 or float64; what gradients are taken in.
        items: e [M, w], without gradients; float32, bfloat16, or float64 as the users.
        link: What is applied to each product; None for the products themselves.
        kept: Results that several metrics ask for, see `once`.
    """

    users: Tensor
    items: Tensor
    link: Link | None = None
    kept: dict[Any, tuple[Any, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, M), that of the matrix."""
        return len(self.users), len(self.items)

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: Any) -> Factors:
        """The same for the prompts at `index`: a slice, [r] int64 or [n] bool."""
        return self.of(self.users[index])

    def of(self, users: Tensor) -> Factors:
        """Scores of other prompts over the same items."""
        return replace(self, users=users)

    def detach(self) -> Factors:
        """The same without a graph."""
        return self.of(self.users.detach()) if self.users.requires_grad else self

    def dense(self) -> Tensor:
        """The matrix [n, M]."""
        products = self.users @ self.items.to(self.users.dtype).T
        return products if self.link is None else self.link(products)

    def once(self, name: Any, given: Any, make: Callable[[], Tensor]) -> Tensor:
        """`make()`, or what it gave when `name` was last asked for with the same object `given`."""
        graph = torch.is_grad_enabled() and self.users.requires_grad
        if name in self.kept:
            of, found = self.kept[name]
            if of is given and found.requires_grad == graph:
                return found
        found = make()
        self.kept[name] = given, found
        return found


Scores = Tensor | Factors
"""Of n prompts over M items, [n, M]: the matrix, or its factors."""


def dense(scores: Scores) -> Tensor:
    """The matrix [n, M] of scores in either form."""
    return scores.dense() if isinstance(scores, Factors) else scores


def rows_of(scores: Scores) -> Tensor:
    """What depends on the prompts, and gradients are taken in: the matrix, or the users."""
    return scores.users if isinstance(scores, Factors) else scores


def remade(scores: Scores, rows: Tensor) -> Scores:
    """Scores in the same form of other rows."""
    return scores.of(rows) if isinstance(scores, Factors) else rows


def leaf_of(scores: Scores) -> tuple[Tensor, Scores]:
    """A leaf to take gradients of scores in, and the scores that depend on it."""
    leaf = rows_of(scores).detach().requires_grad_()
    return leaf, remade(scores, leaf)


def joined(parts: Sequence[tuple[Tensor, Scores]]) -> Scores:
    """Scores of parts of the prompts, each with its prompts' places [r], in the prompts' order."""
    back = torch.cat([places for places, _ in parts]).argsort()
    return remade(parts[0][1], torch.cat([rows_of(each) for _, each in parts])[back])
