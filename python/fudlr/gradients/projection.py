"""Projections of LoRA gradients: the wide side of each matrix on a few orthonormal directions.

B's gradient G `[d_out, rank]` becomes P G, A's `[rank, d_in]` becomes G Pᵀ, P `[q, width]` with
orthonormal rows. Since G = Σ_t left_t right_tᵀ, the projection is applied to the factors, and the
gradient itself never exists. On flat gradients it is S `[p, d]` with S Sᵀ = 1, zero on matrices
that are left out.
"""

from __future__ import annotations

import hashlib
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

Shapes = Mapping[str, tuple[int, int]]
"""LoRA matrices in the order of the flat vector, each with its shape; `Engine.shapes`."""


def is_b(name: str) -> bool:
    """Whether a LoRA matrix is a B, whose wide side is its first; A's is its second."""
    return ".lora_B" in f".{name}"


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
        kind: How the factors were made: `principal` or `random`.
        kept: Share of the energy (sum of squares) of the gradients it was fitted to that sketches
            of them hold.

    Raises:
        UsageError: Factors for no matrix, or of the wrong width.
    """

    def __init__(
        self, shapes: Shapes, factors: Mapping[str, Tensor], *, kind: str, kept: float | None = None
    ) -> None:
        self.shapes = {name: (int(a), int(b)) for name, (a, b) in shapes.items()}
        _check_factors(self.shapes, factors)
        self.factors = {name: factors[name] for name in self.shapes if name in factors}
        self.kind, self.kept = kind, kept
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
        _check_width(flat, self.d, "d")
        out = flat.new_empty(flat.shape[0], self.dim)
        for block in self.blocks:
            gradient = flat[:, block.flat].unflatten(1, block.shape)
            factor = self.factors[block.name].to(flat)
            part = factor @ gradient if is_b(block.name) else gradient @ factor.T
            out[:, block.sketch] = part.flatten(1)
        return out

    def lift(self, sketch: Tensor) -> Tensor:
        """Sᵀ s, `[k, d]` for sketches `[k, p]`; zero on the matrices that are left out."""
        _check_width(sketch, self.dim, "p")
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
        total = float(flat.double().square().sum())
        return float(self.project(flat).double().square().sum()) / total if total else 1.0

    def description(self) -> dict[str, Any]:
        """What it is, for a manifest; two projections are the same where these are equal."""
        return {
            "kind": self.kind,
            "kept": self.kept,
            "dim": self.dim,
            "matrices": f"{len(self.blocks)} of {len(self.shapes)}",
            "fingerprint": self.fingerprint,
        }

    def save(self, path: Path) -> None:
        """Write it as safetensors with its layout as JSON in the header."""
        facts = {
            "shapes": [[name, *shape] for name, shape in self.shapes.items()],
            "kind": self.kind,
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
            found = cls(shapes, factors, kind=facts["kind"], kept=facts["kept"])
            sound = found.fingerprint == facts["fingerprint"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, UsageError) as error:
            raise StoreError(asked, f"{path} cannot be read ({error})", remedy) from error
        if not sound:
            raise StoreError(asked, f"{path} does not match its checksum", remedy)
        return found


def random_projection(shapes: Shapes, dims: int, *, seed: int = 0) -> Projection:
    """A projection on random directions, for gradients that nothing can be fitted to.

    Args:
        shapes: The LoRA matrices in flat order, `Engine.shapes`.
        dims: q of every matrix; one whose wide side is no wider is kept whole.
        seed: Each matrix has its own stream, drawn from this and its name.

    Raises:
        UsageError: `dims` below 1.
    """
    if dims < 1:
        raise UsageError("a random projection was asked", f"dims={dims}", "Give at least 1")
    factors = {}
    for name, (a, b) in shapes.items():
        width = a if is_b(name) else b
        key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        normal = torch.randn(width, min(dims, width), generator=generator)
        factors[name] = torch.linalg.qr(normal.double())[0].T.float().contiguous()
    return Projection(shapes, factors, kind="random")


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


def _check_width(tensor: Tensor, width: int, letter: str) -> None:
    if tensor.dim() != 2 or tensor.shape[1] != width:
        raise UsageError(
            f"a matrix [k, {letter}] with {letter} = {width} was to be projected or lifted",
            f"shape {tuple(tensor.shape)}",
            "A single vector is a matrix with one row: v[None]",
        )
