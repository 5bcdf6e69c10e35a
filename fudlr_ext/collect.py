"""Between the backward pass and the reducers: shapes are checked, and who took part is noted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fudlr_ext.blocks import Adapted, Factors
from fudlr_ext.errors import EngineError, NoGradientError, NonFiniteLossError
from fudlr_ext.layers import Layout, LoraLayer
from fudlr_ext.reducers import EvenOffsets, Reducer, Use

SHOWN = 10  # names in a message; the count says how many there are


def check_losses(losses: Tensor, layout: Layout) -> None:
    """Raise where the losses are not one finite number a sample that depends on the adapter."""
    if not isinstance(losses, Tensor) or losses.dim() != 1:
        shape = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise EngineError(
            "loss(outputs, batch) was to return one loss a sample, [n]",
            f"it returned {shape}",
            "Sum or average over positions, never over samples",
        )
    bad = (~losses.detach().isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteLossError(
            f"the losses of {len(losses)} samples were to be differentiated",
            f"{len(bad)} are NaN or infinite: samples {bad[:SHOWN]} of the batch",
            "Look for samples without labels, or for weights that have diverged",
        )
    if not losses.requires_grad:
        raise no_gradient([layer.name for layer in layout.layers], layout)


def no_gradient(names: list[str], layout: Layout) -> NoGradientError:
    """Return the error for layers that took no part in what was differentiated."""
    return NoGradientError(
        f"the gradients of {len(layout.layers)} adapted layers were asked for",
        f"{len(names)} took no part in what was differentiated: {', '.join(names[:SHOWN])}",
        "Use them in forward(), without detach() or no_grad(), or train an adapter without them",
    )


class Collector:
    """Hands the factors of every block to all reducers.

    Args:
        layout: The layers that have to take part.
        reducers: What to reduce to.
        n: The number of samples; None: the whole batch counts as one.
        seen: Names of layers that were reached before, to which those reached now are added.

    Attributes:
        marks: A layer, whether its input has one row [..., d] a sample, and for each row a number
            that is linear in the gradients there, and their size: of every use whose rows have yet
            to be shown to be the samples', in their order. See `prove_rows`.
    """

    def __init__(
        self,
        layout: Layout,
        reducers: Sequence[Reducer],
        n: int | None,
        seen: set[str] | None = None,
    ) -> None:
        self._layout = layout
        self._reducers = reducers
        self._n = n
        self._seen: set[str] = set() if seen is None else seen
        self._even = EvenOffsets(n or 1)
        self.marks: list[tuple[Adapted, bool, Tensor, Tensor]] = []
        for reducer in reducers:
            reducer.start(layout, n or 1)

    def receive(
        self,
        layer: LoraLayer,
        x: Tensor,
        u: Tensor,
        delta: Tensor,
        v: Tensor,
        *,
        offsets: Tensor | None = None,
    ) -> None:
        """Take one use of a layer, which is all that its gradients are made of.

        Args:
            layer: The layer.
            x: Its input [n, ..., d_in], or packed [T, d_in] with offsets.
            u: scaling·A x [..., rank].
            delta: δ, the gradient of its output [..., d_out].
            v: scaling·Bᵀδ [..., rank].
            offsets: [n + 1], where each sample's positions begin; None: the first dimension counts
                the samples.
        """
        offsets = self._checked(layer, x, delta, offsets)
        self._seen.add(layer.name)
        uses = [(layer.block_a, v, x), (layer.block_b, delta, u)]
        if layer.block_c is not None:
            ones = delta.new_ones(()).expand(*delta.shape[:-1], 1)
            uses.append((layer.block_c, delta * layer.scaling, ones))
        self._add(uses, offsets)

    def receive_blocks(self, layer: Adapted, factors: Factors, x: Tensor, delta: Tensor) -> None:
        """Take one use of a module, whose input and output's gradient make `factors`."""
        uses = list(factors(x, delta))
        if uses:
            self._add(uses, self._checked(layer, uses[0][2], delta, None))
        self._seen.add(layer.name)

    def finish(self) -> None:
        """Raise where a layer was never reached."""
        missing = [layer.name for layer in self._layout.layers if layer.name not in self._seen]
        if missing:
            raise no_gradient(missing, self._layout)

    def _checked(self, layer: Adapted, x: Tensor, delta: Tensor, offsets: Tensor | None) -> Tensor:
        """Return where each sample's positions begin; raise where rows are not samples."""
        if offsets is not None:
            if self._n is None:  # the whole batch counts as one
                return torch.cat([offsets[:1], offsets[-1:]])  # no list of indices to send to a GPU
            if len(offsets) == self._n + 1:
                if self._n > 1 and not layer.rows_proven:
                    each = torch.arange(self._n, device=x.device)
                    self._mark(layer, True, delta, each.repeat_interleave(offsets.diff()))
                return offsets
            raise EngineError(
                f"the gradients of {self._n} samples were asked for",
                f"the input of {layer.name} has {len(offsets) - 1}, whose rows are not the samples",
                "Return one loss for each row of the batch",
            )
        if self._n not in {None, 1}:
            rows = x.shape[0]
            if rows % self._n:
                raise EngineError(
                    f"the gradients of {self._n} samples were asked for",
                    f"the input of {layer.name} is {list(x.shape)}, whose rows are not the samples",
                    "Keep the samples in the first dimension of every adapted layer's input",
                )
            own_row = rows == self._n and x.dim() > 2  # else positions may lie in any order
            if not layer.rows_proven or not own_row:
                each = torch.arange(rows, device=x.device)
                of = each.repeat_interleave(x.shape[1:-1].numel())
                self._mark(layer, own_row, delta.flatten(0, -2), of)
        return self._even.of(x)

    def _mark(self, layer: Adapted, fixed: bool, delta: Tensor, of: Tensor) -> None:
        """Note a number linear in δ [T, d], and δ's size, for each row `of` [T] an input."""
        delta = delta.detach().double()
        t, d = (torch.arange(1, size + 1, device=delta.device).double() for size in delta.shape)
        each = torch.stack([(delta @ d.sin()) * (1.5 + t.cos()), delta.square().sum(1)])
        found = each.new_zeros(2, int(of[-1]) + 1 if len(of) else 0).index_add(1, of, each)
        self.marks.append((layer, fixed, found[0], found[1].sqrt()))

    def _add(self, uses: Sequence[Use], offsets: Tensor) -> None:
        uses = [in_one_dtype(self._layout, use) for use in uses]
        for reducer in self._reducers:
            reducer.add_all(uses, self._n or 1, offsets)


def in_one_dtype(layout: Layout, use: Use) -> Use:
    """Return a block with both factors in one dtype, float64 where the adapter has it alone."""
    block, left, right = use
    if left.dtype == right.dtype == layout.dtype:
        return use
    dtype = torch.promote_types(left.dtype, right.dtype)
    if torch.float64 in {dtype, layout.dtype}:
        dtype = layout.dtype
    return block, left.to(dtype), right.to(dtype)


EXPONENTS = (-4, 11, 0, 7, -2, 9, 2, 5, -3, 10, 1, 6, -1, 8, 3, 4)


def row_weights(losses: Tensor) -> Tensor:
    """Return a weight for each sample: powers of two of either sign, far from its neighbours'.

    A backward pass is linear, and products with powers of two round nowhere. What a sample of small
    weight gets from one of large weight stands out, however little it is beside its own.
    """
    i = torch.arange(len(losses), device=losses.device)
    exponents = torch.tensor(EXPONENTS, device=losses.device, dtype=losses.dtype)
    return torch.exp2(exponents[i % 16]) * (1 - 2 * (i // 16 % 2)).to(losses)


def prove_rows(before: Collector, after: Collector, weights: Tensor) -> None:
    """Raise where the rows of an adapted layer's input are not the samples.

    That the first dimension has n entries does not say it: n tokens may have gone to an expert,
    positions may come first, or a sample's loss may look at other samples. The losses are
    differentiated a second time, each with its own weight; then each row's gradient must be the
    first one times its sample's weight.

    Args:
        before: What took the gradients of the losses.
        after: What took those of the weighted losses, from the same graph.
        weights: [n].
    """
    weights = weights.double()
    for (layer, fixed, one, size), (*_, other, _) in zip(before.marks, after.marks, strict=True):
        share = weights.repeat_interleave(len(one) // len(weights))
        expected = one * share
        rounding = 1e-5 * size * share.abs() + 1e-9 * size.max()
        wrong = (other - expected).abs() > 0.25 * expected.abs() + rounding
        if bool(wrong.any()):
            raise EngineError(
                f"the gradients of {len(weights)} samples were asked for",
                f"row {int(wrong.nonzero()[0])} of the {len(one)} of the input of {layer.name} "
                "does not belong to that sample alone (experts, positions in front, or losses that "
                "look at other samples)",
                "Take gradients of batches of one sample, or adapt other layers",
            )
        layer.rows_proven = layer.rows_proven or fixed
