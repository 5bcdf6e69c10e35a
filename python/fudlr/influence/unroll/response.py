"""How a batch's gradients answer when the adapter is elsewhere, from their rows alone.

A LoRA layer is W + s B A, and a sample's gradients of it are two views of one matrix
G_i = s ∂ℓ_i/∂W:

    g_A,i = Bᵀ G_i,    g_B,i = G_i Aᵀ.

At A + a, B + b the views are other ones, (B + b)ᵀ G and G (A + a)ᵀ; and G is another, by the
curvature in W. With Fisher's mean of G_i G_iᵀ for that,

    r_i = ⟨G_i, (B + b)(A + a) − B A⟩ = ⟨g_i, δ⟩ + ⟨G_i, b a⟩,
    Ĝ = (1/n) Σ w_i G_i + w̄ mean T_j r_j G_j,

    (1/n) Σ w_i g_i(θ + δ) ≈ (Bᵀ Ĝ + bᵀ Ĝ,  Ĝ Aᵀ + Ĝ aᵀ).

A loss that is the mean of T tokens' has T times the curvature that its gradient's square speaks of:
where answers are as the model expects them the tokens' gradients are uncorrelated, so that the
square has their squares over T², and their curvature is over T. A batch of such samples has T times
the directions too; so the mean over j is taken over several batches, those around this one.

The curvature is that of all samples, times the mean weight w̄: Fisher's matrix is the curvature
where labels are as the model expects them, and those that a removal leaves are not; what the model
expects was learnt from all.

The views bᵀ Ĝ and Ĝ aᵀ are what empirical Fisher leaves out, and what decides a short training:
B starts at 0, so that A's gradient *is* B's way. Of Ĝ only the two views are known; the smallest
matrix that has both stands for it,

    Ĝ = U A + B V,    U = Ĝ Aᵀ (A Aᵀ)⁻¹,    V = (Bᵀ B)⁺ Bᵀ Ĝ (1 − Aᵀ (A Aᵀ)⁻¹ A),

exact in the row space of A and the column space of B. Nothing wider than a LoRA matrix is formed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from fudlr.common.errors import ModelError
from fudlr_ext.ops import row_gram, row_sums

RANK = 1e-3
"""Smallest eigenvalue of A Aᵀ and Bᵀ B beside the largest that counts as one: after Adam's first
step the columns of B are the same but for signs."""


class Terms(NamedTuple):
    """A batch's rows `[b, d]`, and of how many terms each sample's loss is the mean, T `[b]`."""

    rows: Tensor
    terms: Tensor


class Pair(NamedTuple):
    """Where a layer's A [r, in] and B [out, r] lie in the flat vector."""

    a: slice
    b: slice
    a_shape: tuple[int, int]
    b_shape: tuple[int, int]

    def of(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """A and B of flat vectors `[..., d]`."""
        return (vectors[..., self.a].unflatten(-1, self.a_shape),
                vectors[..., self.b].unflatten(-1, self.b_shape))  # fmt: skip


def pairs(shapes: Mapping[str, tuple[int, int]]) -> list[Pair]:
    """The layers of a flat vector whose matrices are `shapes`, each A before its B.

    Raises:
        ModelError: They do not come in such pairs.
    """
    names, found, start = list(shapes), [], 0
    for a, b in zip(names[::2], names[1::2], strict=False):
        if "lora_A" not in a or b != a.replace("lora_A", "lora_B"):
            break
        middle = start + prod(shapes[a])
        end = middle + prod(shapes[b])
        found.append(Pair(slice(start, middle), slice(middle, end), shapes[a], shapes[b]))
        start = end
    if 2 * len(found) != len(names):
        raise ModelError(
            "a training was to be gone again, layer by layer",
            f"{names[2 * len(found)]} does not stand beside its other matrix",
            "Give the shapes of an engine, where every A comes before its B",
        )
    return found


@dataclass(frozen=True)
class _Layer:
    """One layer at θ: its pair, A, B, (A Aᵀ)⁻¹ and (Bᵀ B)⁺."""

    pair: Pair
    a: Tensor
    b: Tensor
    a_inverse: Tensor
    b_inverse: Tensor

    def factors(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """U [out, r] and V [r, in] of the Ĝ whose views are `total` [d]."""
        left, right = self.pair.of(total)
        outside = left - left @ self.a.T @ self.a_inverse @ self.a
        return right @ self.a_inverse, self.b_inverse @ outside


class Response:
    """The gradients of batches near one θ.

    Args:
        layers: The layers of the flat vector; see `pairs`.
        theta: θ `[d]`, where the rows were taken.
    """

    def __init__(self, layers: list[Pair], theta: Tensor) -> None:
        self._layers = list(_at(layers, theta))

    def gradient(
        self, rows: Tensor, weights: Tensor, shift: Tensor, near: Iterable[Terms]
    ) -> Tensor:
        """(1/b) Σ w_i g_i(θ + δ) `[d]`.

        Args:
            rows: Of the batch `[b, d]`.
            weights: w `[b]`.
            shift: δ `[d]`.
            near: What the curvature is the mean of: this batch and some around it.
        """
        seen = shift + self._product(shift)
        total = row_sums(rows, _beside(rows, weights)[None])[0].to(shift) / len(rows)
        total = total + weights.mean() * _fisher(near, seen[None])[0]
        return total + self._views(total, shift[None])[0]

    def curvature(self, slope: Tensor, vectors: Tensor, near: Iterable[Terms]) -> Tensor:
        """The derivative of the mean gradient at δ = 0 along `vectors` `[k, d]`; symmetric.

        Args:
            slope: The batch's mean gradient `[d]`.
            vectors: `[k, d]`.
            near: As for `gradient`.
        """
        return _fisher(near, vectors) + self._views(slope, vectors)

    def _views(self, total: Tensor, shifts: Tensor) -> Tensor:
        """(bᵀ Ĝ, Ĝ aᵀ) for each of `shifts` `[k, d]`, Ĝ's own views being `total` `[d]`."""
        out = torch.zeros_like(shifts)
        for layer in self._layers:
            u, v = layer.factors(total)
            a, b = layer.pair.of(shifts)
            bt = b.transpose(-1, -2)
            of_a, of_b = layer.pair.of(out)
            of_a += (bt @ u) @ layer.a + (bt @ layer.b) @ v
            at = a.transpose(-1, -2)
            of_b += u @ (layer.a @ at) + layer.b @ (v @ at)
        return out

    def _product(self, shift: Tensor) -> Tensor:
        """What b a adds to δ, as far as A's row space sees it: ⟨G_i, b a⟩ = ⟨g_B,i, b a A⁺⟩."""
        out = torch.zeros_like(shift)
        for layer in self._layers:
            a, b = layer.pair.of(shift)
            layer.pair.of(out)[1].copy_(b @ (a @ layer.a.T @ layer.a_inverse))
        return out


def _at(layers: list[Pair], theta: Tensor) -> Iterator[_Layer]:
    for pair in layers:
        a, b = pair.of(theta)
        yield _Layer(pair, a, b, _inverse(a @ a.T), _inverse(b.T @ b))


def _fisher(near: Iterable[Terms], vectors: Tensor) -> Tensor:
    """The mean of T_j g_j g_jᵀ v for each of `vectors` `[k, d]`."""
    total, count = torch.zeros_like(vectors), 0
    for rows, terms in near:
        _, sums = row_gram(rows, _beside(rows, vectors), _beside(rows, terms))
        total += sums.to(vectors)
        count += len(rows)
    return total / count


def _beside(rows: Tensor, vectors: Tensor) -> Tensor:
    """`vectors` in the type that products with `rows` take."""
    return vectors.to(torch.float64 if rows.dtype == torch.float64 else torch.float32)


def _inverse(gram: Tensor) -> Tensor:
    """The pseudoinverse of a symmetric matrix; 0 of 0."""
    if not bool(gram.any()):
        return torch.zeros_like(gram)
    return torch.linalg.pinv(gram.double(), rtol=RANK, hermitian=True).to(gram)
