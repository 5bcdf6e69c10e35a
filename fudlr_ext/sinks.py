"""What to reduce per-sample gradients to while the backward pass makes them: one class each.

A sink is given the two factors of every LoRA matrix's gradients, block by block as the backward
pass reaches them, and never the gradients themselves. A block that is used several times in one
forward pass arrives several times, and its parts add up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fudlr_ext.layers import Block, Layout
from fudlr_ext.ops import grad_sum, sample_dots, sample_grads


class Sink(ABC):
    """One pass's reduction; `start` is called once, then `add` for every block, then `result`."""

    @abstractmethod
    def start(self, layout: Layout, n: int) -> None:
        """Get ready for `n` samples of a model with this layout."""

    @abstractmethod
    def add(self, block: Block, left: Tensor, right: Tensor) -> None:
        """Take the factors of the block's gradients G_i = Σ_t left_it right_itᵀ.

        Args:
            block: The matrix [a, b].
            left: [n, t, a].
            right: [n, t, b].
        """

    @abstractmethod
    def result(self) -> Tensor:
        """Return what was asked for; called once."""


class Rows(Sink):
    """The gradients themselves, [n, d]."""

    def start(self, layout: Layout, n: int) -> None:  # noqa: D102
        self._rows = torch.zeros(n, layout.d, dtype=layout.dtype, device=layout.device)

    def add(self, block: Block, left: Tensor, right: Tensor) -> None:  # noqa: D102
        self._rows[:, block.slice] += sample_grads(left, right).flatten(1)

    def result(self) -> Tensor:  # noqa: D102
        return self._rows


class Dots(Sink):
    """Their products with vectors [k, d], as [n, k]."""

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors

    def start(self, layout: Layout, n: int) -> None:  # noqa: D102
        self._dots = self._vectors.new_zeros(n, self._vectors.shape[0])

    def add(self, block: Block, left: Tensor, right: Tensor) -> None:  # noqa: D102
        self._dots += sample_dots(left, right, block.of(self._vectors))

    def result(self) -> Tensor:  # noqa: D102
        return self._dots


class Sums(Sink):
    """Their sums with weights [w, n], as [w, d]."""

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights

    def start(self, layout: Layout, n: int) -> None:  # noqa: D102
        self._sums = self._weights.new_zeros(self._weights.shape[0], layout.d)

    def add(self, block: Block, left: Tensor, right: Tensor) -> None:  # noqa: D102
        self._sums[:, block.slice] += grad_sum(left, right, self._weights).flatten(1)

    def result(self) -> Tensor:  # noqa: D102
        return self._sums


class FisherProduct(Sink):
    """The empirical Fisher's products (1/n) Σ_i g_i ⟨g_i, v⟩ with vectors [k, d], as [k, d].

    The factors are kept until all products ⟨g_i, v⟩ are known, so that one backward pass suffices:
    that is memory for the inputs and output gradients of every adapted layer.
    """

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors

    def start(self, layout: Layout, n: int) -> None:  # noqa: D102
        self._n = n
        self._dots = Dots(self._vectors)
        self._dots.start(layout, n)
        self._layout = layout
        self._factors: list[tuple[Block, Tensor, Tensor]] = []

    def add(self, block: Block, left: Tensor, right: Tensor) -> None:  # noqa: D102
        self._dots.add(block, left, right)
        self._factors.append((block, left, right))

    def result(self) -> Tensor:  # noqa: D102
        sums = Sums(self._dots.result().t() / self._n)
        sums.start(self._layout, self._n)
        for factors in self._factors:
            sums.add(*factors)
        self._factors.clear()
        return sums.result()
