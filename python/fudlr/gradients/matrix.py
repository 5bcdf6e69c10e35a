"""The matrix of per-sample gradients G [n, d], row i being g_i = ∇ℓ_i, seen through its products.

All that the method asks of the training data are three products: G v for influence, Gᵀ m for the
update, Gᵀ G v for the curvature. Whether the rows lie in memory (`MemoryRows`), on disk
(`store.StoredRows`) or are computed again for each product (`StreamedRows`) is nobody else's
concern.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fudlr.common.batches import Batches, Source
from fudlr.common.errors import DataError, NumericalError
from fudlr_ext import Engine
from fudlr_ext.ops import row_dots, row_gram, row_sums

Forward = Callable[[Any, Any], Any]
Loss = Callable[[Any, Any], Tensor]
ROW_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class GradientMatrix(ABC):
    """n per-sample gradients of d parameters each; a form gives the three products.

    Attributes:
        n: Samples.
        d: Parameters.
    """

    n: int
    d: int

    def dots(self, vectors: Tensor) -> Tensor:
        """G Vᵀ, `[n, k]`, for `vectors` V `[k, d]`."""
        check_columns(vectors, self.d, "vectors", "d")
        return self._dots(vectors)

    def sum(self, weights: Tensor) -> Tensor:
        """Σ_i w_i g_i, `[w, d]`, for `weights` `[w, n]`."""
        check_columns(weights, self.n, "weights", "n")
        return self._sum(weights)

    def gram_product(self, vectors: Tensor, weights: Tensor | None = None) -> Tensor:
        """V Gᵀ diag(w) G / n, `[k, d]`, for `vectors` `[k, d]`; `weights` `[n]` default to ones.

        The divisor is n whatever the weights, as in the loss.
        """
        check_columns(vectors, self.d, "vectors", "d")
        if weights is not None:
            check_columns(weights[None], self.n, "weights", "n")
        return self._gram(vectors, weights) / self.n

    @abstractmethod
    def _dots(self, vectors: Tensor) -> Tensor: ...

    @abstractmethod
    def _sum(self, weights: Tensor) -> Tensor: ...

    def _gram(self, vectors: Tensor, weights: Tensor | None) -> Tensor:
        dots = self._dots(vectors).T
        return self._sum((dots if weights is None else dots * weights).contiguous())


class MemoryRows(GradientMatrix):
    """Rows held as one matrix.

    Args:
        matrix: G, `[n, d]`.

    Raises:
        DataError: `matrix` is not a floating-point matrix with at least one row.
        NumericalError: Some rows are not finite; the first of them is named.
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.dim() != 2 or not matrix.is_floating_point() or matrix.shape[0] == 0:
            raise DataError(
                "per-sample gradients were to be a matrix [n, d] with n ≥ 1",
                f"{matrix.dtype} of shape {tuple(matrix.shape)}",
                "Record at least one sample, one row each",
            )
        ids = torch.arange(len(matrix))
        for rows, some in zip(matrix.split(1024), ids.split(1024), strict=True):
            check_rows(rows, some)  # in blocks, which keep the check's memory small
        self.matrix = matrix
        self.n, self.d = matrix.shape
        # The engine's row ops read each row once.
        self._native = matrix.device.type == "cpu" and matrix.dtype in ROW_DTYPES
        self._real = torch.float64 if matrix.dtype == torch.float64 else torch.float32

    def _dots(self, vectors: Tensor) -> Tensor:
        if not self._native:
            return self.matrix @ vectors.contiguous().T
        return row_dots(self.matrix, vectors.to(self._real)).to(vectors.dtype)

    def _sum(self, weights: Tensor) -> Tensor:
        if not self._native:
            return weights.contiguous() @ self.matrix
        return row_sums(self.matrix, weights.to(self._real)).to(weights.dtype)

    def _gram(self, vectors: Tensor, weights: Tensor | None) -> Tensor:
        if not self._native:
            return super()._gram(vectors, weights)
        given = None if weights is None else weights.to(self._real)
        return row_gram(self.matrix, vectors.to(self._real), given)[1].to(vectors.dtype)

    def take(self, index: Tensor) -> Tensor:
        """The rows at `index` `[m]`, `[m, d]`."""
        return self.matrix[index]


class StreamedRows(GradientMatrix):
    """Rows computed again by the engine for each product; peak memory does not grow with n.

    Args:
        engine: What computes products with per-sample gradients.
        forward: `forward(model, batch) -> outputs`.
        loss: `loss(outputs, batch) -> [n]`, one undivided loss a sample.
        batches: The samples, in the order of the rows.
    """

    def __init__(
        self, engine: Engine, forward: Forward, loss: Loss, batches: Batches | Source
    ) -> None:
        self._engine, self._face = engine, (forward, loss)
        self._batches = Batches.of(batches)
        self.d = engine.d

    @property
    def n(self) -> int:  # type: ignore[override]
        """Number of samples."""
        return self._batches.n

    def _dots(self, vectors: Tensor) -> Tensor:
        out = vectors.new_empty(self.n, vectors.shape[0])
        there = vectors.to(self._engine.device)
        for batch, rows in self._batches:
            found = self._engine.sample_dots(*self._face, batch, there)
            _check_size(found.shape[0], rows)
            out[rows] = found.to(out)
        return out

    def _sum(self, weights: Tensor) -> Tensor:
        out = torch.zeros(len(weights), self.d, dtype=weights.dtype, device=self._engine.device)
        for batch, rows in self._batches:
            part = weights[:, rows]
            if part.count_nonzero():  # batches of zero weight are skipped
                out += self._engine.grad_sum(*self._face, batch, part.contiguous())
        return out.to(weights.device)

    def _gram(self, vectors: Tensor, weights: Tensor | None) -> Tensor:
        there = vectors.to(self._engine.device)
        out = torch.zeros_like(there)
        for batch, rows in self._batches:
            part = None if weights is None else weights[rows]
            mean = self._engine.fisher_vp(*self._face, batch, there, part)
            out.add_(mean, alpha=rows.stop - rows.start)
        return out.to(vectors.device)


def record_rows(
    engine: Engine,
    forward: Forward,
    loss: Loss,
    batches: Batches | Source,
) -> MemoryRows:
    """Compute every sample's gradient once and keep them.

    Args:
        engine: What computes per-sample gradients.
        forward: `forward(model, batch) -> outputs`.
        loss: `loss(outputs, batch) -> [n]`, one undivided loss a sample.
        batches: The samples, in the order that the rows will have.

    Returns:
        Rows `[n, d]`: n · d numbers of memory.

    Raises:
        NumericalError: A sample's gradient is not finite; found at its batch.
    """
    batches = Batches.of(batches)
    matrix: Tensor | None = None
    for batch, rows in batches:
        part = engine.sample_grads(forward, loss, batch).cpu()
        _check_size(part.shape[0], rows)
        check_rows(part, torch.arange(rows.start, rows.stop))
        if matrix is None:
            matrix = part.new_empty(batches.n, part.shape[1])
        matrix[rows] = part
    return MemoryRows(torch.empty(0, 0) if matrix is None else matrix)


def check_columns(tensor: Tensor, size: int, name: str, letter: str) -> None:
    """Raise DataError unless `tensor` is a matrix of `size` columns; the error calls them so."""
    if tensor.dim() != 2 or tensor.shape[1] != size:
        raise DataError(
            f"{name} were to be a matrix with {letter} = {size} columns",
            f"shape {tuple(tensor.shape)}",
            "A single one is a matrix with one row: v[None]",
        )


def _check_size(found: int, rows: slice) -> None:
    expected = rows.stop - rows.start
    if found != expected:
        raise DataError(
            f"a batch of {expected} samples was to give {expected} rows",
            f"it gave {found}",
            "Let loss return one value a sample, or hand over Batches(source, sizes=[...])",
        )


def is_finite(numbers: Tensor) -> bool:
    """Whether all numbers are finite, and their sum in float64."""
    # A sum is finite only if all its terms are, and needs no second copy of them.
    return math.isfinite(float(numbers.sum(dtype=torch.float64)))


def check_rows(rows: Tensor, ids: Tensor) -> None:
    """Raise NumericalError by the first of the samples `ids` `[m]` whose row `[m, d]` is not
    finite."""
    if is_finite(rows):
        return
    broken = (~rows.isfinite().all(dim=1)).nonzero().flatten()
    if broken.numel():
        raise NumericalError(
            "per-sample gradients were to be recorded",
            f"{broken.numel()} of them are not finite, sample {int(ids[broken[0]])} the first",
            "Look for NaN or overflow in that sample's loss; 16-bit weights often cause it",
        )
