"""What one batch's backward pass gave: sketches, the gradients' sum, losses."""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.gradients.store.projection import Projection
from fudlr.gradients.store.writer import StoreWriter
from fudlr_ext.layers import Block, Layout
from fudlr_ext.ops import grad_sum
from fudlr_ext.reducers import Sketch


class BatchGradients:
    """Takes a batch's gradients from a `BackwardHook`, and hands them to a writer.

    Without a projection the factors are held until there is one.

    Args:
        layout: The LoRA matrices.
        ids: The samples `[n]`.
        scale: divisor / weight: one number, or one a sample `[n]`.
        projection: What makes the rows.
    """

    def __init__(
        self, layout: Layout, ids: Tensor, scale: float | Tensor, projection: Projection | None
    ) -> None:
        self.ids = ids
        self.losses: Tensor | None = None
        self.held: list[tuple[Block, Tensor, Tensor, Tensor]] = []
        self._layout = layout
        self._scale = scale
        self._sum = torch.zeros(layout.d, dtype=layout.dtype, device=layout.device)
        self._sketch: Sketch | None = None
        if projection is not None:
            self.use(projection)

    @property
    def held_bytes(self) -> int:
        """Memory of the factors that are held."""
        return sum(x.numel() * x.element_size() for _, *each in self.held for x in each)

    def multiplied(self, factor: float) -> None:
        """Say that the loss was multiplied by `factor` on its way to `backward`.

        To be said before a gradient arrives: where the factor shows only in the backward pass, from
        a hook on the loss.
        """
        self._scale = self._scale / factor

    def use(self, projection: Projection) -> None:
        """Sketch what is held, and what arrives from now on."""
        self._sketch = Sketch(projection.sides)
        self._sketch.start(self._layout, len(self.ids))
        for factors in self.held:
            self._sketch.add(*factors)
        self.held.clear()

    def factors(self, block: Block, left: Tensor, right: Tensor, offsets: Tensor) -> None:
        """Take a block's factors from the backward pass."""
        if isinstance(self._scale, Tensor):
            weights = self._scale[None].to(self._sum)
            self._sum[block.slice] += grad_sum(left, right, weights, offsets)[0].flatten()
        if self._sketch is None:
            self.held.append((block, left, right, offsets))
        else:
            self._sketch.add(block, left, right, offsets)

    def total(self, block: Block, gradient: Tensor) -> None:
        """Take the gradient of the whole loss in a block."""
        if not isinstance(self._scale, Tensor):
            self._sum[block.slice].add_(gradient.flatten().to(self._sum), alpha=self._scale)

    def append_to(self, writer: StoreWriter) -> None:
        """Store rows, Σ g_i and losses."""
        assert self._sketch is not None
        rows = self._sketch.result()
        rows *= self._scale[:, None].to(rows) if isinstance(self._scale, Tensor) else self._scale
        writer.append(self.ids, rows, gradient_sum=self._sum, losses=self.losses)
