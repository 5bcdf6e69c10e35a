"""Kronecker projections of LoRA gradients: each matrix G `[a, b]` becomes P_l G P_rᵀ.

Since G = Σ_t left_t right_tᵀ, P_l G P_rᵀ = Σ_t (P_l left_t)(P_r right_t)ᵀ: the projection is
applied to the factors, and the gradient itself never exists. As a matrix on the flat gradient it
is S = ⊕ P_l ⊗ P_r, with zero columns for the LoRA matrices that are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.common.files import atomic_file
from fudlr.gradients.store.errors import StoreError
from fudlr.gradients.store.spec import canonical_json, fingerprint

Matrices = Literal["B", "both"]
Shapes = Mapping[str, tuple[int, int]]
"""LoRA matrices in the order of the flat vector, each with its shape; `Engine.shapes`."""


@dataclass(frozen=True)
class Factors:
    """What is applied to both sides of a gradient matrix `[a, b]`; None leaves a side as it is."""

    left: Tensor | None = None  # [q_l, a]
    right: Tensor | None = None  # [q_r, b]


@dataclass(frozen=True)
class Block:
    """One kept matrix: its place in the flat gradient and in the sketch."""

    name: str
    shape: tuple[int, int]
    start: int
    sketch_shape: tuple[int, int]
    sketch_start: int


class Projection:
    """S `[p, d]`, from flat LoRA gradients to sketches and back.

    Args:
        shapes: The LoRA matrices in flat order, `Engine.shapes`.
        factors: Those that are kept, by name.
        kind: How the factors were made: `principal`, `gaussian`, `orthonormal`, `countsketch`.
        seed: Of random ones.
        kept: Share of the energy (sum of squares) of the kept matrices' gradients that the sketch
            holds, on what the factors were fitted to.

    Raises:
        UsageError: Factors for no matrix, or of the wrong width.
    """

    def __init__(
        self,
        shapes: Shapes,
        factors: Mapping[str, Factors],
        *,
        kind: str,
        seed: int | None = None,
        kept: float | None = None,
    ) -> None:
        self.shapes = {name: (int(a), int(b)) for name, (a, b) in shapes.items()}
        _check_factors(self.shapes, factors)
        self.factors = {name: factors[name] for name in self.shapes if name in factors}
        self.kind = kind
        self.seed = seed
        self.kept = kept
        self.blocks = list(self._place())
        last = self.blocks[-1]
        self.dim = last.sketch_start + last.sketch_shape[0] * last.sketch_shape[1]
        self.d = sum(a * b for a, b in self.shapes.values())
        self._fingerprint: str | None = None

    def _place(self) -> Iterator[Block]:
        start = sketch_start = 0
        for name, (a, b) in self.shapes.items():
            if name in self.factors:
                pair = self.factors[name]
                small = (
                    a if pair.left is None else pair.left.shape[0],
                    b if pair.right is None else pair.right.shape[0],
                )
                yield Block(name, (a, b), start, small, sketch_start)
                sketch_start += small[0] * small[1]
            start += a * b

    def project(self, flat: Tensor) -> Tensor:
        """S g, `[k, p]` for flat gradients `[k, d]`."""
        _check_width(flat, self.d, "d")
        out = flat.new_empty(flat.shape[0], self.dim)
        for block in self.blocks:
            a, b = block.shape
            gradient = flat[:, block.start : block.start + a * b].unflatten(1, (a, b))
            left, right = self._pair(block.name, flat)
            gradient = gradient if left is None else left @ gradient
            gradient = gradient if right is None else gradient @ right.T
            self.part(out, block).copy_(gradient)
        return out

    def lift(self, sketch: Tensor) -> Tensor:
        """Sᵀ s, `[k, d]` for sketches `[k, p]`; zero on the matrices that are left out."""
        _check_width(sketch, self.dim, "p")
        out = sketch.new_zeros(sketch.shape[0], self.d)
        for block in self.blocks:
            a, b = block.shape
            part = self.part(sketch, block)
            left, right = self._pair(block.name, sketch)
            part = part if left is None else left.T @ part
            part = part if right is None else part @ right
            out[:, block.start : block.start + a * b] = part.flatten(1)
        return out

    def reduce(self, name: str, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """P_l left and P_r right, `[T, q_l]` and `[T, q_r]`, of factors `[T, a]` and `[T, b]`.

        The sketch of sample i is Σ_t left_t right_tᵀ over its positions, row by row.
        """
        pair_left, pair_right = self._pair(name, left)
        return (
            left if pair_left is None else left @ pair_left.T,
            right if pair_right is None else right @ pair_right.T,
        )

    @property
    def sides(self) -> dict[str, tuple[Tensor | None, Tensor | None]]:
        """P_l and P_r of every kept matrix, as `Engine.sample_sketch` takes them."""
        return {name: (pair.left, pair.right) for name, pair in self.factors.items()}

    def energy_kept(self, flat: Tensor) -> float:
        """Share of Σ‖g‖² that the sketches of `flat` `[k, d]` hold, of all matrices."""
        total = float(flat.double().square().sum())
        return float(self.project(flat).double().square().sum()) / total if total else 1.0

    def products_kept(self, flat: Tensor, probes: Tensor) -> float:
        """1 − ‖G Vᵀ − (S G)(S V)ᵀ‖² / ‖G Vᵀ‖² for `flat` G `[n, d]` and `probes` V `[k, d]`.

        With probes H⁻¹∇F these are influences.
        """
        exact = flat @ probes.T
        error = exact - self.project(flat) @ self.project(probes).T
        total = float(exact.double().square().sum())
        return 1 - float(error.double().square().sum()) / total if total else 1.0

    @property
    def fingerprint(self) -> str:
        """sha256 over the matrices' shapes and all factors."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(
                [[name, *shape] for name, shape in self.shapes.items()], self._tensors()
            )
        return self._fingerprint

    def description(self) -> dict[str, Any]:
        """What it is, for a manifest; two projections are the same where these are equal."""
        return {
            "kind": self.kind,
            "seed": self.seed,
            "kept": self.kept,
            "d": self.d,
            "p": self.dim,
            "matrices": f"{len(self.blocks)} of {len(self.shapes)}",
            "fingerprint": self.fingerprint,
        }

    def save(self, path: Path) -> None:
        """Write it as safetensors with its layout as JSON in the header."""
        facts = {
            "shapes": [[name, *shape] for name, shape in self.shapes.items()],
            "kept_matrices": list(self.factors),
            "kind": self.kind,
            "seed": self.seed,
            "kept": self.kept,
            "fingerprint": self.fingerprint,
        }
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors().items()}
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata={"projection": canonical_json(facts)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            StoreError: The file is missing or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["projection"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: (int(a), int(b)) for name, a, b in facts["shapes"]}
            factors = {
                name: Factors(tensors.get(f"{name}.left"), tensors.get(f"{name}.right"))
                for name in facts["kept_matrices"]
            }
            found = cls(shapes, factors, kind=facts["kind"], seed=facts["seed"], kept=facts["kept"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, UsageError) as error:
            raise _bad_file(path, f"cannot be read ({error})") from error
        if found.fingerprint != facts["fingerprint"]:
            raise _bad_file(path, "is corrupted: it does not match its checksum")
        return found

    def _tensors(self) -> dict[str, Tensor]:
        sides = {
            f"{name}.{side}": getattr(pair, side)
            for name, pair in self.factors.items()
            for side in ("left", "right")
        }
        return {name: tensor for name, tensor in sides.items() if tensor is not None}

    def _pair(self, name: str, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        pair = self.factors[name]
        return (
            None if pair.left is None else pair.left.to(like),
            None if pair.right is None else pair.right.to(like),
        )

    @staticmethod
    def part(sketch: Tensor, block: Block) -> Tensor:
        """A matrix's part of sketches `[k, p]`, a view `[k, q_l, q_r]`."""
        size = block.sketch_shape[0] * block.sketch_shape[1]
        part = sketch[:, block.sketch_start : block.sketch_start + size]
        return part.unflatten(1, block.sketch_shape)


def chosen(shapes: Shapes, matrices: Matrices) -> dict[str, bool]:
    """The LoRA matrices to keep, each with whether it is a B.

    B `[d_out, rank]` is wide on its left side, A `[rank, d_in]` on its right: the wide side is
    what a projection shortens.
    """
    out = {
        name: ".lora_B" in f".{name}"
        for name in shapes
        if matrices == "both" or ".lora_B" in f".{name}"
    }
    if not out:
        raise UsageError(
            f"a projection of {'LoRA matrices' if matrices == 'both' else 'B matrices'} was asked",
            f"none among {list(shapes)[:3]}",
            "Hand over Engine.shapes",
        )
    return out


def _check_factors(shapes: Shapes, factors: Mapping[str, Factors]) -> None:
    unknown = [name for name in factors if name not in shapes]
    wrong = [
        name
        for name, pair in factors.items()
        if name in shapes
        for width, side in zip(shapes[name], (pair.left, pair.right), strict=True)
        if side is not None and (side.dim() != 2 or side.shape[1] != width or not len(side))
    ]
    if unknown or wrong or not factors:
        raise UsageError(
            "a projection was to be made of factors [q, a] and [q, b] for LoRA matrices [a, b]",
            f"no such matrix: {unknown[:3]}; wrong shape: {wrong[:3]}"
            if factors
            else "there are no factors",
            "Give at least one matrix its factors, by the names in Engine.shapes",
        )


def _check_width(tensor: Tensor, width: int, letter: str) -> None:
    if tensor.dim() != 2 or tensor.shape[1] != width:
        raise UsageError(
            f"a matrix [k, {letter}] with {letter} = {width} was to be projected or lifted",
            f"shape {tuple(tensor.shape)}",
            "A single vector is a matrix with one row: v[None]",
        )


def _bad_file(path: Path, found: str) -> StoreError:
    return StoreError(
        "a store's projection was to be read",
        f"{path} {found}",
        "Restore it from a copy; without it the rows cannot be lifted, and must be recorded again",
    )
