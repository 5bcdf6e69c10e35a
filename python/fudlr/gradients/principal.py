"""Principal directions of the gradients' wide side, from the first batches of a pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.gradients.projection import Projection, Shapes, is_b

EXACT_WIDTH = 2048  # up to here the second moment is kept whole: 16 MiB a side in float32
KEPT_DIRECTIONS = 256  # beyond it, as many as an incremental decomposition carries along


class SecondMoment:
    """Σ x xᵀ of vectors `[width]`: exact where it fits, else its leading part and its trace."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.trace = 0.0
        self._whole = torch.zeros(width, width) if width <= EXACT_WIDTH else None
        self._rows = torch.empty(0, width)  # Σ x xᵀ ≈ rowsᵀ rows

    def add(self, vectors: Tensor) -> None:
        """Count `vectors` `[m, width]` in."""
        vectors = vectors.detach().to("cpu", torch.float32)
        self.trace += float(vectors.double().square().sum())
        if self._whole is not None:
            self._whole.addmm_(vectors.T, vectors)
            return
        for part in vectors.split(KEPT_DIRECTIONS):
            self._rows = torch.cat([self._rows, part])
            if len(self._rows) > 2 * KEPT_DIRECTIONS:
                self._rows = self._compress()[:KEPT_DIRECTIONS]

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, falling, `[m]`, and their eigenvectors as rows `[m, width]`."""
        if self._whole is not None:
            values, vectors = torch.linalg.eigh(self._whole.double())
            return values.flip(0).clamp(min=0), vectors.T.flip(0)
        rows = self._compress().double()
        lengths = rows.norm(dim=1)
        keep = lengths > lengths.max() * 1e-6
        return lengths[keep].square(), rows[keep] / lengths[keep, None]

    def _compress(self) -> Tensor:
        """Rows of falling length, orthogonal to each other, with the same Σ x xᵀ."""
        _, values, vectors = torch.linalg.svd(self._rows, full_matrices=False)
        return values[:, None] * vectors


class PrincipalAccumulator:
    """Gathers per-sample gradients, and chooses the leading directions of their wide sides:
    eigenvectors of Σ G_i G_iᵀ for B, of Σ G_iᵀ G_i for A.

    Args:
        shapes: The LoRA matrices in flat order, `Engine.shapes`.
    """

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = dict(shapes)
        self.moments = {
            name: SecondMoment(shape[0] if is_b(name) else shape[1])
            for name, shape in self.shapes.items()
        }

    @property
    def silent(self) -> list[str]:
        """Matrices none of whose gradients was above 0 yet; A's are so while B is 0."""
        return [name for name, moment in self.moments.items() if moment.trace == 0]

    def add_gradients(self, name: str, gradients: Tensor) -> None:
        """Count per-sample gradients `[n, a, b]` of one matrix in."""
        wide = gradients.mT if is_b(name) else gradients
        self.moments[name].add(wide.reshape(-1, wide.shape[-1]))

    def add_rows(self, flat: Tensor) -> None:
        """Count flat per-sample gradients `[n, d]` in."""
        start = 0
        for name, (a, b) in self.shapes.items():
            self.add_gradients(name, flat[:, start : start + a * b].unflatten(1, (a, b)))
            start += a * b

    def fit(self, *, dims: int | None = None, energy: float | None = None) -> Projection:
        """Choose the directions.

        Args:
            dims: As many for every matrix.
            energy: Or the fewest for each matrix that keep this share of its energy. The same
                share everywhere, since modules of small gradients steer too once the curvature
                has rescaled them.

        Raises:
            UsageError: Neither or both of `dims` and `energy`, one out of range, or nothing added.
        """
        silent = self.silent
        _check_fit(dims, energy, nothing=len(silent) == len(self.moments))
        factors, held, total = {}, 0.0, 0.0
        for name, moment in self.moments.items():
            if name in silent:
                continue
            values, vectors = moment.eigen()
            count = dims or _fewest(values, moment.trace, energy or 0.0)
            factors[name] = vectors[:count].float().contiguous()
            held += float(values[:count].sum())
            total += moment.trace
        kept = round(min(1.0, held / total), 6)
        return Projection(self.shapes, factors, kind="principal", kept=kept)


def _fewest(values: Tensor, trace: float, energy: float) -> int:
    """How many of the falling eigenvalues `values` make the share `energy` of the trace."""
    short = values.cumsum(0) / trace < energy - 1e-7  # a share of 1 may be missed by rounding
    return min(int(short.sum()) + 1, len(values))


def _check_fit(dims: int | None, energy: float | None, *, nothing: bool) -> None:
    one = (dims is None) != (energy is None)
    if not one or (dims or 1) < 1 or dims == 0 or not 0 < (energy or 1) <= 1 or energy == 0:
        raise UsageError(
            "principal directions were to be chosen",
            f"dims={dims} and energy={energy}",
            "Give a number of directions from 1 on, or a share of energy above 0 and at most 1",
        )
    if nothing:
        raise UsageError(
            "principal directions were to be chosen",
            "no gradient was added, or all were zero",
            "Add the first batches' gradients before fit()",
        )
