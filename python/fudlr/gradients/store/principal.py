"""Principal directions of the gradients' wide side, from the first batches of a pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.gradients.store.projection import Factors, Matrices, Projection, Shapes, chosen

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
    """Gathers what the directions are chosen from, and chooses them.

    Per-sample gradients G_i are the better source (Σ G_i G_iᵀ for B, Σ G_iᵀ G_i for A); where a
    recorder has only the backward pass's factors, positions' factors serve.

    Args:
        shapes: The LoRA matrices in flat order, `Engine.shapes`.
        matrices: `B` alone, or `both` A and B.
    """

    def __init__(self, shapes: Shapes, matrices: Matrices = "B") -> None:
        self.shapes = dict(shapes)
        self._is_b = chosen(shapes, matrices)
        self._moments = {
            name: SecondMoment(shapes[name][0 if is_b else 1])
            for name, is_b in self._is_b.items()
        }  # fmt: skip

    @property
    def names(self) -> list[str]:
        """The matrices whose directions are looked for."""
        return list(self._is_b)

    def add(self, name: str, factor: Tensor) -> None:
        """Count the wide side's factor in, `[T, d_out]` (δ) for B or `[T, d_in]` (x) for A."""
        self._moments[name].add(factor.reshape(-1, factor.shape[-1]))

    def add_gradients(self, name: str, gradients: Tensor) -> None:
        """Count per-sample gradients `[n, a, b]` of one matrix in."""
        wide = gradients.mT if self._is_b[name] else gradients
        self._moments[name].add(wide.reshape(-1, wide.shape[-1]))

    def add_rows(self, flat: Tensor) -> None:
        """Count flat per-sample gradients `[n, d]` in."""
        start = 0
        for name, (a, b) in self.shapes.items():
            if name in self._moments:
                self.add_gradients(name, flat[:, start : start + a * b].unflatten(1, (a, b)))
            start += a * b

    def directions(self, name: str, dims: int) -> Tensor:
        """The `dims` leading directions of a matrix's wide side, orthonormal rows `[q, width]`."""
        return self._moments[name].eigen()[1][:dims].float().contiguous()

    def fit(
        self, *, dims: int | None = None, energy: float | None = None, cap: int | None = None
    ) -> Projection:
        """Choose the directions.

        Args:
            dims: As many for every matrix.
            energy: Or the fewest for each matrix that keep this share of its energy. The same
                share everywhere, since modules of small gradients steer too once the curvature
                has rescaled them.
            cap: Largest p; with `energy` the share falls, for all alike, until it is met.

        Raises:
            UsageError: Neither or both of `dims` and `energy`; nothing was added; `cap` below one
                direction a matrix.
        """
        silent = [name for name, moment in self._moments.items() if moment.trace == 0]
        _check_fit(dims, energy, silent, self._moments)
        eigen = {
            name: moment.eigen() for name, moment in self._moments.items() if name not in silent
        }
        traces = {name: self._moments[name].trace for name in eigen}
        thin = {name: self.shapes[name][1 if self._is_b[name] else 0] for name in eigen}
        if dims is not None:
            counts = {name: min(dims, len(values)) for name, (values, _) in eigen.items()}
        else:
            shares = {name: v.cumsum(0) / traces[name] for name, (v, _) in eigen.items()}
            counts = _counts(shares, thin, energy or 0.0, cap)
        total = sum(counts[name] * thin[name] for name in counts)
        if cap is not None and total > cap:
            raise UsageError(
                f"a projection to at most {cap} dimensions was asked",
                f"{total} are the fewest that dims={dims} or one direction a matrix give",
                "Raise the cap, or lower dims",
            )
        held = sum(float(eigen[name][0][: counts[name]].sum()) for name in counts)
        factors = {}
        for name, count in counts.items():
            basis = eigen[name][1][:count].float().contiguous()
            factors[name] = Factors(left=basis) if self._is_b[name] else Factors(right=basis)
        kept = round(min(1.0, held / sum(traces.values())), 6)
        return Projection(self.shapes, factors, kind="principal", kept=kept)


def _counts(
    shares: dict[str, Tensor], thin: dict[str, int], energy: float, cap: int | None
) -> dict[str, int]:
    """Fewest directions a matrix for the share `energy`, or for the largest one under the cap."""

    def at(level: float) -> dict[str, int]:
        return {
            # A share of 1 may be missed by rounding: all directions then.
            name: min(int((share < level - 1e-7).sum()) + 1, len(share))
            for name, share in shares.items()
        }

    def size(counts: dict[str, int]) -> int:
        return sum(count * thin[name] for name, count in counts.items())

    best = at(energy)
    if cap is None or size(best) <= cap:
        return best
    low, high = 0.0, energy
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if size(at(middle)) <= cap else (low, middle)
    return at(low)


def _check_fit(
    dims: int | None,
    energy: float | None,
    silent: list[str],
    moments: dict[str, SecondMoment],
) -> None:
    if (dims is None) == (energy is None):
        raise UsageError(
            "principal directions were to be chosen",
            f"dims={dims} and energy={energy}",
            "Give one of them: a number of directions, or a share of energy to keep",
        )
    if (dims is not None and dims < 1) or (energy is not None and not 0 < energy <= 1):
        raise UsageError(
            "principal directions were to be chosen",
            f"dims={dims} and energy={energy}",
            "At least one direction; a share above 0 and at most 1",
        )
    if len(silent) == len(moments):
        raise UsageError(
            "principal directions were to be chosen",
            "no gradient was added, or all were zero",
            "Add the first batches' gradients before fit()",
        )
