"""Projections of LoRA gradients: the wide side of each matrix on a few orthonormal directions.

B's gradient G `[d_out, rank]` becomes P G, A's `[rank, d_in]` becomes G Pᵀ, P `[q, width]` with
orthonormal rows. Since G = Σ_t left_t right_tᵀ, the projection is applied to the factors, and the
gradient itself never exists. On flat gradients it is S `[p, d]` with S Sᵀ = 1, zero on matrices
that are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fudlr.common.digest import canonical_json, digest
from fudlr.common.errors import StoreError, UsageError
from fudlr.common.files import atomic_file
from fudlr.common.parallel import ALONE, Ranks
from fudlr.gradients.matrix import check_columns
from fudlr_ext.ops.unroll import lora_project

EXACT_WIDTH = 2048  # up to here the second moment is kept whole: 16 MiB a side in float32
KEPT_DIRECTIONS = 256  # beyond it, as many as an incremental decomposition carries along
SMALL_SQUARE = 64  # columns of a product that halving would make no faster
FLOAT32_ENERGY = 0.999  # up to this share float32 finds the directions too, in half the time
Shapes = Mapping[str, tuple[int, int]]
"""LoRA matrices in the order of the flat vector, each with its shape; `Engine.shapes`."""


def is_b(name: str) -> bool:
    """Whether a LoRA matrix is a B, whose wide side is its first; A's is its second."""
    return any(part in f".{name}" for part in (".lora_B", ".lora_embedding_B"))


@dataclass(frozen=True)
class Block:
    """One kept matrix: its place in the flat gradient and in the sketch."""

    name: str
    shape: tuple[int, int]
    flat: slice
    sketch_shape: tuple[int, int]
    sketch: slice


class Projection:
    """S `[p, d]`, from flat LoRA gradients to sketches and back.

    Args:
        shapes: The LoRA matrices in flat order, `Engine.shapes`.
        factors: P `[q, width]` of those that are kept, by name; its rows are orthonormal.
        kept: Share of the energy (sum of squares) of the gradients it was fitted to that sketches
            of them hold.

    Raises:
        UsageError: Factors for no matrix, or of the wrong width.
    """

    def __init__(
        self, shapes: Shapes, factors: Mapping[str, Tensor], kept: float | None = None
    ) -> None:
        self.shapes = {name: (int(a), int(b)) for name, (a, b) in shapes.items()}
        _check_factors(self.shapes, factors)
        self.factors = {name: factors[name] for name in self.shapes if name in factors}
        self.kept = kept
        self.blocks: list[Block] = []
        at = self.dim = 0
        for name, (a, b) in self.shapes.items():
            if name in self.factors:
                q = len(self.factors[name])
                small = (q, b) if is_b(name) else (a, q)
                end = self.dim + small[0] * small[1]
                place = (slice(at, at + a * b), small, slice(self.dim, end))
                self.blocks.append(Block(name, (a, b), *place))
                self.dim = end
            at += a * b
        self.d = at
        tensors = {name: factor.float() for name, factor in self.factors.items()}
        self.fingerprint = digest([[name, *shape] for name, shape in self.shapes.items()], tensors)

    def project(self, flat: Tensor) -> Tensor:
        """S g, `[k, p]` for flat gradients `[k, d]`."""
        check_columns(flat, self.d, "gradients", "d")
        return lora_project(flat.cpu(), *self.table(flat.dtype), self.dim).to(flat.device)

    def table(self, dtype: torch.dtype, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All factors one after the other, and the table that ops read them by, for vectors whose
        number `order[j]` is the flat one's j-th, matrix by matrix; flat ones where None."""
        rows, start = [], 0
        for block in self.blocks:
            at = block.flat.start if order is None else int(order[block.flat.start])
            q = len(self.factors[block.name])
            rows.append((at, *block.shape, start, q, block.sketch.start, is_b(block.name)))
            start += self.factors[block.name].numel()
        factors = [factor.to("cpu", dtype).flatten() for factor in self.factors.values()]
        return torch.cat(factors), torch.tensor(rows)

    def lift(self, sketch: Tensor) -> Tensor:
        """Sᵀ s, `[k, d]` for sketches `[k, p]`; zero on the matrices that are left out."""
        check_columns(sketch, self.dim, "sketches", "p")
        out = sketch.new_zeros(sketch.shape[0], self.d)
        for block in self.blocks:
            part = sketch[:, block.sketch].unflatten(1, block.sketch_shape)
            factor = self.factors[block.name].to(sketch)
            whole = factor.T @ part if is_b(block.name) else part @ factor
            out[:, block.flat] = whole.flatten(1)
        return out

    @property
    def sides(self) -> dict[str, tuple[Tensor | None, Tensor | None]]:
        """P_l and P_r of every kept matrix, as `Engine.sample_sketch` takes them."""
        return {
            name: (factor, None) if is_b(name) else (None, factor)
            for name, factor in self.factors.items()
        }

    def energy_kept(self, flat: Tensor) -> float:
        """Share of Σ‖g‖² that the sketches of `flat` `[k, d]` hold, of all matrices."""
        total = energy_of(flat)
        return energy_of(self.project(flat)) / total if total else 1.0

    def description(self) -> dict[str, Any]:
        """What it is, for a manifest; two projections are the same where these are equal."""
        return {
            "kind": "principal",
            "kept": self.kept,
            "dim": self.dim,
            "matrices": f"{len(self.blocks)} of {len(self.shapes)}",
            "fingerprint": self.fingerprint,
        }

    def save(self, path: Path) -> None:
        """Write it as safetensors with its layout as JSON in the header."""
        facts = {
            "shapes": [[name, *shape] for name, shape in self.shapes.items()],
            "kept": self.kept,
            "fingerprint": self.fingerprint,
        }
        tensors = {name: factor.float().contiguous() for name, factor in self.factors.items()}
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata={"projection": canonical_json(facts)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            StoreError: The file is missing or damaged.
        """
        asked = "a store's projection was to be read"
        remedy = "Restore the file from a copy, or record the store again into a new folder"
        try:
            if not path.is_file():
                raise FileNotFoundError(2, "there is no such file")
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["projection"])
                factors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: (int(a), int(b)) for name, a, b in facts["shapes"]}
            found = cls(shapes, factors, facts["kept"])
            sound = found.fingerprint == facts["fingerprint"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, UsageError) as error:
            raise StoreError(asked, f"{path} cannot be read ({error})", remedy) from error
        if not sound:
            raise StoreError(asked, f"{path} does not match its checksum", remedy)
        return found


class SecondMoment:
    """Σ x xᵀ of vectors `[width]`: exact where it fits, else its leading part and its trace."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.trace = 0.0
        # Its upper triangle is what counts; below it are some numbers of the lower one.
        self._whole = torch.zeros(width, width) if width <= EXACT_WIDTH else None
        self._rows = torch.empty(0, width)  # Σ x xᵀ ≈ rowsᵀ rows

    def add(self, vectors: Tensor) -> None:
        """Count `vectors` `[m, width]` in."""
        vectors = vectors.detach().to("cpu", torch.float32)
        self.trace += energy_of(vectors)
        if self._whole is not None:
            _add_square(self._whole, vectors)
            return
        for part in vectors.split(KEPT_DIRECTIONS):
            self._rows = torch.cat([self._rows, part])
            if len(self._rows) > 2 * KEPT_DIRECTIONS:
                self._rows = self._compress()[:KEPT_DIRECTIONS]

    def pool(self, ranks: Ranks, owner: int) -> None:
        """Count in what the other ranks counted but its trace, on the rank `owner`."""
        if self._whole is not None:
            ranks.sum_at(owner, self._whole)
        elif ranks.size > 1:
            rows, self._rows = ranks.cat(self._rows), self._rows[:0]
            self.add(rows)

    def eigen(self, energy: float) -> tuple[Tensor, Tensor]:
        """Eigenvalues, falling, `[m]` in float64, and their eigenvectors as rows `[m, width]`,
        exact enough to choose a share `energy` by."""
        if self._whole is not None:
            whole = self._whole if energy <= FLOAT32_ENERGY else self._whole.double()
            values, vectors = torch.linalg.eigh(whole, UPLO="U")
            return values.flip(0).double().clamp(min=0), vectors.T.flip(0)
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
        self._ranks, self._own = ALONE, self.moments

    def add_rows(self, flat: Tensor) -> None:
        """Count flat per-sample gradients `[n, d]` in."""
        start = 0
        for name, (a, b) in self.shapes.items():
            part = flat[:, start : start + a * b].unflatten(1, (a, b))
            wide = part.mT if is_b(name) else part
            self.moments[name].add(wide.reshape(-1, wide.shape[-1]))
            start += a * b

    def pool(self, ranks: Ranks) -> None:
        """Count in what the other ranks counted; from here on each rank answers for some of the
        matrices, and what follows is a collective."""
        self._ranks, self._own, work = ranks, {}, [0] * ranks.size
        traces = torch.tensor([each.trace for each in self.moments.values()], dtype=torch.float64)
        ranks.sum(traces)
        whole = dict(zip(self.moments, traces.tolist(), strict=True))
        for name, moment in sorted(self.moments.items(), key=lambda each: -each[1].width):
            owner = work.index(min(work))
            work[owner] += moment.width**3
            moment.pool(ranks, owner)
            moment.trace = whole[name]
            if owner == ranks.rank:
                self._own[name] = moment

    def fit(self, energy: float) -> Projection:
        """The fewest directions of each matrix that keep the share `energy` of its energy.

        The same share everywhere, since modules of small gradients steer too once the curvature has
        rescaled them.

        Raises:
            UsageError: Nothing was added.
        """
        own: dict[str, Tensor] = {}
        held = dict.fromkeys(self._own, 0.0)
        with self._ranks.together():
            for name, moment in self._own.items():
                if moment.trace:
                    values, vectors = moment.eigen(energy)
                    # A share of 1 may be missed by rounding.
                    short = int((values.cumsum(0) / moment.trace < energy - 1e-7).sum())
                    count = min(short + 1, len(values))
                    own[name] = vectors[:count].float().contiguous()
                    held[name] = float(values[:count].sum())
        total = sum(moment.trace for moment in self.moments.values())
        factors = self._of_all(own)
        if not factors:
            raise UsageError(
                "principal directions were to be chosen",
                "no gradient was added, or all were zero",
                "Add the first batches' gradients before fit()",
            )
        kept = sum(sum(each) for each in self._ranks.gather(list(held.values()))) / total
        return Projection(self.shapes, factors, round(min(1.0, kept), 6))

    def _of_all(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every rank's factors."""
        if self._ranks.size == 1:
            return own
        flat = torch.cat([torch.empty(0), *(factor.flatten() for factor in own.values())])
        counts = {name: len(factor) for name, factor in own.items()}
        places = [each for found in self._ranks.gather(counts) for each in found.items()]
        sizes = [count * self.moments[name].width for name, count in places]
        parts = zip(places, self._ranks.cat(flat).split(sizes), strict=True)
        return {name: part.view(count, -1) for (name, count), part in parts}


def _add_square(whole: Tensor, vectors: Tensor) -> None:
    """Add Σ x xᵀ of `vectors` `[m, width]` to the upper triangle of `whole`, halves by halves."""
    half = len(whole) // 2
    if half < SMALL_SQUARE:
        whole.addmm_(vectors.T, vectors)
        return
    left, right = vectors[:, :half], vectors[:, half:]
    _add_square(whole[:half, :half], left)
    _add_square(whole[half:, half:], right)
    whole[:half, half:].addmm_(left.T, right)


def energy_of(vectors: Tensor) -> float:
    """Σ x², over rows in float64; a row in its own type, in which it is as fast as it is read."""
    return float(torch.linalg.vector_norm(vectors, dim=-1).double().square().sum())


def _check_factors(shapes: Shapes, factors: Mapping[str, Tensor]) -> None:
    wrong = [name for name in factors if name not in shapes]
    for name, factor in factors.items():
        width = shapes[name][0 if is_b(name) else 1] if name in shapes else -1
        if name in shapes and (factor.dim() != 2 or factor.shape[1] != width or not len(factor)):
            wrong.append(name)
    if wrong or not factors:
        raise UsageError(
            "a projection was to be made of factors [q, width] for LoRA matrices",
            f"no such matrix, or another width: {wrong[:3]}" if factors else "there are none",
            "Give at least one matrix its factor, by the names in Engine.shapes",
        )
