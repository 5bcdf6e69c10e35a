"""The matrix of per-sample gradients G [n, d], row i being g_i = ∇ℓ_i, seen through its products.

All that the method asks of the training data are three products: G v for influence, Gᵀ m for the
update, Gᵀ G v for the curvature. Whether the rows lie in memory (`MemoryRows`), on disk
(`store.StoredRows`) or are computed again for each product (`StreamedRows`) is nobody else's
concern.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from fudlr.common.batches import Batches, Source
from fudlr.common.errors import DataError, NumericalError
from fudlr_ext.ops import row_dots, row_gram, row_sums

Forward = Callable[[Any, Any], Any]
Loss = Callable[[Any, Any], Tensor]
Progress = Callable[[int, int], None]
"""Called after each batch with the samples done and the samples in all."""

ROW_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class GradientMatrix(Protocol):
    """n per-sample gradients of d parameters each."""

    @property
    def n(self) -> int:
        """Number of samples."""
        ...

    @property
    def d(self) -> int:
        """Number of parameters."""
        ...

    def dots(self, vectors: Tensor) -> Tensor:
        """G Vᵀ, `[n, k]`, for `vectors` V `[k, d]`."""
        ...

    def sum(self, weights: Tensor) -> Tensor:
        """Σ_i w_i g_i, `[w, d]`, for `weights` `[w, n]`."""
        ...

    def gram_product(self, vectors: Tensor, weights: Tensor | None = None) -> Tensor:
        """V Gᵀ diag(w) G / n, `[k, d]`, for `vectors` `[k, d]`; `weights` `[n]` default to ones.

        The divisor is n whatever the weights, as in the loss.
        """
        ...


class KeptMatrix(GradientMatrix, Protocol):
    """Rows that are kept, and can be looked at."""

    def take(self, index: Tensor) -> Tensor:
        """The rows at `index` `[m]`, `[m, d]`."""
        ...


class RowEngine(Protocol):
    """What recomputed rows ask of an engine; `fudlr_ext.Engine` has it."""

    def sample_grads(self, forward: Forward, loss: Loss, batch: Any) -> Tensor:
        """Per-sample gradients, `[n, d]`."""
        ...

    def sample_dots(self, forward: Forward, loss: Loss, batch: Any, vectors: Tensor) -> Tensor:
        """Products of the per-sample gradients with `vectors` `[k, d]`, `[n, k]`."""
        ...

    def grad_sum(self, forward: Forward, loss: Loss, batch: Any, weights: Tensor) -> Tensor:
        """Weighted sums of the per-sample gradients, `[w, d]` for `weights` `[w, n]`."""
        ...

    def fisher_vp(
        self,
        forward: Forward,
        loss: Loss,
        batch: Any,
        vectors: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Gᵀ diag(w) G v / n of the batch, `[k, d]` for `vectors` `[k, d]`, `weights` `[n]`."""
        ...


class MemoryRows:
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
        # A row's sum is finite only if the row is; blocks keep the check's memory small.
        bad = [not bool(row.sum().isfinite()) for row in matrix.split(1024)]
        if any(bad):
            broken = (~matrix.isfinite().all(dim=1)).nonzero().flatten()
            if broken.numel():
                raise _not_finite(broken)
        self.matrix = matrix

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.matrix.shape[0]

    @property
    def d(self) -> int:
        """Number of parameters."""
        return self.matrix.shape[1]

    def dots(self, vectors: Tensor) -> Tensor:
        """G Vᵀ, `[n, k]`, for `vectors` V `[k, d]`."""
        check_columns(vectors, self.d, "vectors", "d")
        if not self._native:
            return self.matrix @ vectors.contiguous().T
        return row_dots(self.matrix, vectors.to(self._real)).to(vectors.dtype)

    def sum(self, weights: Tensor) -> Tensor:
        """Σ_i w_i g_i, `[w, d]`, for `weights` `[w, n]`."""
        check_columns(weights, self.n, "weights", "n")
        if not self._native:
            return weights.contiguous() @ self.matrix
        return row_sums(self.matrix, weights.to(self._real)).to(weights.dtype)

    def gram_product(self, vectors: Tensor, weights: Tensor | None = None) -> Tensor:
        """V Gᵀ diag(w) G / n, `[k, d]`, for `vectors` `[k, d]`; `weights` `[n]` or ones."""
        check_columns(vectors, self.d, "vectors", "d")
        if weights is not None:
            check_columns(weights[None], self.n, "weights", "n")
            weights = weights.to(self._real) if self._native else weights
        if not self._native:
            dots = self.dots(vectors).T
            return self.sum(dots if weights is None else dots * weights) / self.n
        _, sums = row_gram(self.matrix, vectors.to(self._real), weights)
        return (sums / self.n).to(vectors.dtype)

    @property
    def _native(self) -> bool:
        """Whether the engine's row ops, which read each row once, take this matrix."""
        return self.matrix.device.type == "cpu" and self.matrix.dtype in ROW_DTYPES

    @property
    def _real(self) -> torch.dtype:
        """The dtype of what a row is multiplied with."""
        return torch.float64 if self.matrix.dtype == torch.float64 else torch.float32

    def take(self, index: Tensor) -> Tensor:
        """The rows at `index` `[m]`, `[m, d]`."""
        return self.matrix[index]


class StreamedRows:
    """Rows computed again by the engine for each product; peak memory does not grow with n.

    Args:
        engine: What computes products with per-sample gradients; see `RowEngine`.
        forward: `forward(model, batch) -> outputs`.
        loss: `loss(outputs, batch) -> [n]`, one undivided loss a sample.
        batches: The samples, in the order of the rows.
        d: Number of parameters; asked of the engine (`engine.d`) where not given.
        progress: Told after each batch.
    """

    def __init__(
        self,
        engine: RowEngine,
        forward: Forward,
        loss: Loss,
        batches: Batches | Source,
        *,
        d: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._engine = engine
        self._face = (forward, loss)
        self._batches = Batches.of(batches)
        self._d = int(engine.d) if d is None else d  # type: ignore[attr-defined]
        self._progress = progress

    @property
    def n(self) -> int:
        """Number of samples."""
        return self._batches.n

    @property
    def d(self) -> int:
        """Number of parameters."""
        return self._d

    def dots(self, vectors: Tensor) -> Tensor:
        """G Vᵀ, `[n, k]`, for `vectors` V `[k, d]`."""
        check_columns(vectors, self.d, "vectors", "d")
        out = vectors.new_empty(self.n, vectors.shape[0])

        def step(batch: Any, rows: slice) -> None:
            found = self._engine.sample_dots(*self._face, batch, vectors)
            _check_size(found.shape[0], rows)
            out[rows] = found

        self._pass(step)
        return out

    def sum(self, weights: Tensor) -> Tensor:
        """Σ_i w_i g_i, `[w, d]`, for `weights` `[w, n]`; batches of zero weight are skipped."""
        check_columns(weights, self.n, "weights", "n")
        out = weights.new_zeros(weights.shape[0], self.d)

        def step(batch: Any, rows: slice) -> None:
            part = weights[:, rows]
            if part.count_nonzero():
                out.add_(self._engine.grad_sum(*self._face, batch, part.contiguous()))

        self._pass(step)
        return out

    def gram_product(self, vectors: Tensor, weights: Tensor | None = None) -> Tensor:
        """V Gᵀ diag(w) G / n, `[k, d]`, for `vectors` `[k, d]`; `weights` `[n]` or ones."""
        check_columns(vectors, self.d, "vectors", "d")
        if weights is not None:
            check_columns(weights[None], self.n, "weights", "n")
        out = torch.zeros_like(vectors)

        def step(batch: Any, rows: slice) -> None:
            part = None if weights is None else weights[rows]
            mean = self._engine.fisher_vp(*self._face, batch, vectors, part)
            out.add_(mean, alpha=rows.stop - rows.start)

        self._pass(step)
        return out / self.n

    def _pass(self, step: Callable[[Any, slice], None]) -> None:
        for batch, rows in self._batches:
            step(batch, rows)
            if self._progress is not None:
                self._progress(rows.stop, self.n)


def record_rows(
    engine: RowEngine,
    forward: Forward,
    loss: Loss,
    batches: Batches | Source,
    *,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> MemoryRows:
    """Compute every sample's gradient once and keep them.

    Args:
        engine: What computes per-sample gradients; see `RowEngine`.
        forward: `forward(model, batch) -> outputs`.
        loss: `loss(outputs, batch) -> [n]`, one undivided loss a sample.
        batches: The samples, in the order that the rows will have.
        dtype: Type of the rows; the engine's where not given.
        progress: Told after each batch.

    Returns:
        Rows `[n, d]`: n · d numbers of memory.

    Raises:
        NumericalError: A sample's gradient is not finite; found at its batch.
    """
    batches = Batches.of(batches)
    matrix: Tensor | None = None
    for batch, rows in batches:
        part = engine.sample_grads(forward, loss, batch)
        _check_size(part.shape[0], rows)
        broken = (~part.isfinite().all(dim=1)).nonzero().flatten()
        if broken.numel():
            raise _not_finite(broken + rows.start)
        if matrix is None:
            matrix = part.new_empty(batches.n, part.shape[1], dtype=dtype or part.dtype)
        matrix[rows] = part
        if progress is not None:
            progress(rows.stop, batches.n)
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


def _not_finite(rows: Tensor) -> NumericalError:
    return NumericalError(
        "per-sample gradients were to be recorded",
        f"{rows.numel()} of them are not finite, sample {int(rows[0])} the first",
        "Look for NaN or overflow in that sample's loss; 16-bit weights often cause it",
    )
