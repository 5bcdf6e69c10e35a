"""How a batch's gradients answer when the adapter is elsewhere, from its mean gradient and Fisher
products alone.

A LoRA layer is W + s B A, and a sample's gradients of it are two views of one matrix
G_i = s ∂ℓ_i/∂W:

    g_A,i = Bᵀ G_i,    g_B,i = G_i Aᵀ.

At A + a, B + b the views are other ones, (B + b)ᵀ G and G (A + a)ᵀ; and G is another, by the
curvature in W. With Fisher's mean of G_i G_iᵀ for that,

    r_i = ⟨G_i, (B + b)(A + a) − B A⟩ = ⟨g_i, δ⟩ + ⟨G_i, b a⟩,
    Ĝ = (1/n) Σ w_i G_i + w̄ mean T_j r_j G_j,

    (1/n) Σ w_i g_i(θ + δ) ≈ (Bᵀ Ĝ + bᵀ Ĝ,  Ĝ Aᵀ + Ĝ aᵀ).

A loss that is the mean of T tokens' has T times the curvature that its gradient's square estimates:
where answers are as the model expects them the tokens' gradients are uncorrelated, so that the
square has their squares over T², and their curvature is over T. A batch of such samples has T times
the directions too; so the mean over j is taken over several batches, those around this one
(`unrolled.Unrolled` does, and hands the products over).

The curvature is that of all samples, times the mean weight w̄: Fisher's matrix is the curvature
where labels are as the model expects them, and those that a removal leaves are not; what the model
expects was learnt from all.

The views bᵀ Ĝ and Ĝ aᵀ are what empirical Fisher leaves out, and what decides a short training:
B starts at 0, so that A's gradient *is* B's way. Of Ĝ only the two views are known; the smallest
matrix that has both stands for it,

    Ĝ = U A + B V,    U = Ĝ Aᵀ (A Aᵀ)⁻¹,    V = (Bᵀ B)⁺ Bᵀ Ĝ (1 − Aᵀ (A Aᵀ)⁻¹ A),

exact in the row space of A and the column space of B. So does the same matrix for each G_i in r_i:
⟨G_i, b a⟩ is ⟨g_B,i, b a Aᵀ (A Aᵀ)⁻¹⟩ and, of what of a is outside of A's row space,
⟨g_A,i, (Bᵀ B)⁺ Bᵀ b a⟩. Nothing wider than a LoRA matrix is formed.

An adapter on an embedding is such a layer, its input a unit vector. What is added to the model as
it is (trained tokens, biases of B) has one view, its gradient, which no shift turns: Fisher's part
alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from fudlr_ext.ops.unroll import lora_seen, lora_views

PAIR = re.compile(r"\b(lora_|lora_embedding_)A\b")
"""In the name of an A, where its B has a B."""
RANK = 1e-3
"""Smallest eigenvalue of A Aᵀ and Bᵀ B beside the largest that counts as one: after Adam's first
step the columns of B are the same but for signs."""


@dataclass(frozen=True)
class Layers:
    """L layers of the same shapes: where their A [r, in] and B [out, r] lie in the flat vector."""

    index_a: Tensor | slice
    index_b: Tensor | slice
    a_shape: tuple[int, int, int]
    b_shape: tuple[int, int, int]

    def of(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """A `[..., L, r, in]` and B `[..., L, out, r]` of flat vectors `[..., d]`."""
        return (vectors[..., self.index_a].unflatten(-1, self.a_shape),
                vectors[..., self.index_b].unflatten(-1, self.b_shape))  # fmt: skip

    @property
    def table(self) -> list[tuple[int, int, int, int, int]]:
        """Where each layer's A and B lie, its rank, in and out."""
        (count, rank, wide), (_, out, _) = self.a_shape, self.b_shape
        starts = [
            [index.start + i * size if isinstance(index, slice) else int(index[i * size])
             for i in range(count)]
            for index, size in ((self.index_a, rank * wide), (self.index_b, out * rank))
        ]  # fmt: skip
        return [(a, b, rank, wide, out) for a, b in zip(*starts, strict=True)]


def group_layers(shapes: Mapping[str, tuple[int, int]]) -> list[Layers]:
    """The pairs of A and B of a flat vector whose matrices are `shapes`, by shape."""
    sizes = [prod(shape) for shape in shapes.values()]
    starts = dict(zip(shapes, accumulate(sizes, initial=0), strict=False))
    groups: dict[tuple[tuple[int, int], tuple[int, int]], list[tuple[int, int]]] = {}
    for a, b in ((name, PAIR.sub(r"\1B", name)) for name in shapes):
        if a != b and b in shapes:
            groups.setdefault((shapes[a], shapes[b]), []).append((starts[a], starts[b]))
    out = []
    for (a_shape, b_shape), places in groups.items():
        of_a = torch.cat([torch.arange(at, at + prod(a_shape)) for at, _ in places])
        of_b = torch.cat([torch.arange(at, at + prod(b_shape)) for _, at in places])
        out.append(Layers(of_a, of_b, (len(places), *a_shape), (len(places), *b_shape)))
    return out


def arrange(layers: list[Layers], d: int) -> tuple[Tensor, list[Layers]]:
    """An order of flat vectors, `vector[..., order]`, in which the matrices of each group lie
    side by side, so that `Layers.of` copies nothing, and what is in no pair at last; the layers."""
    order: list[Tensor] = []
    out, start = [], 0
    for group in layers:
        assert isinstance(group.index_a, Tensor)
        assert isinstance(group.index_b, Tensor)
        order += [group.index_a, group.index_b]
        middle = start + len(group.index_a)
        end = middle + len(group.index_b)
        out.append(replace(group, index_a=slice(start, middle), index_b=slice(middle, end)))
        start = end
    alone = torch.ones(d, dtype=torch.bool)
    for index in order:
        alone[index] = False
    return torch.cat([*order, alone.nonzero()[:, 0]]), out


Inverses = tuple[Tensor, Tensor]
"""(A Aᵀ)⁻¹ and (Bᵀ B)⁺ of all layers one by one, `[..., Σ r²]` each."""


def inverses(layers: list[Layers], theta: Tensor) -> Inverses:
    """For adapters `theta` `[..., d]`."""
    if not layers:
        nothing = theta.new_zeros(*theta.shape[:-1], 0)
        return nothing, nothing
    parts = [group.of(theta) for group in layers]
    grams = [[a @ a.mT for a, _ in parts], [b.mT @ b for _, b in parts]]
    of_a, of_b = (torch.cat([_inverse(g).flatten(-3) for g in each], -1) for each in grams)
    return of_a, of_b


class Response:
    """The gradients of batches near one θ.

    Args:
        layers: Of the flat vector; see `group_layers`.
        theta: θ `[d]`, where the rows were taken.
        known: Its `inverses`, where they are known.
        table: The layers' as the ops take it, where it is known.
    """

    def __init__(
        self,
        layers: list[Layers],
        theta: Tensor,
        known: Inverses | None = None,
        table: Tensor | None = None,
    ) -> None:
        table = layer_table(layers) if table is None else table
        self._place = (theta, *(known or inverses(layers, theta)), table)

    def seen(self, shifts: Tensor) -> Tensor:
        """Each δ of `shifts` `[k, d]` with what b a adds to it: ⟨g_i, seen⟩ = r_i, of the smallest
        G_i that has both views. The Fisher product with it is the change of Ĝ's views."""
        return lora_seen(shifts, *self._place)

    def views(self, total: Tensor, shifts: Tensor) -> Tensor:
        """(bᵀ Ĝ, Ĝ aᵀ) for each of `shifts` `[k, d]`, Ĝ's own views being `total` `[d]`, or each
        shift's `[k, d]`.

        The derivative of the mean gradient `total` that empirical Fisher leaves out; symmetric.
        """
        return lora_views(total, shifts, *self._place)


def layer_table(layers: list[Layers]) -> Tensor:
    """`Layers.table` of all, `[L, 5]`."""
    rows = [row for group in layers for row in group.table]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 5)


def _inverse(gram: Tensor) -> Tensor:
    """The pseudoinverses of symmetric matrices; 0 of 0."""
    wide = gram.double()
    found, failed = torch.linalg.inv_ex(wide)
    # λ_max / λ_min is at most ‖G‖ ‖G⁻¹‖: below 1 / RANK every eigenvalue counts.
    norms = torch.linalg.matrix_norm(wide) * torch.linalg.matrix_norm(found)
    short = (failed != 0) | ~(norms < 1 / RANK)
    if bool(short.any()):
        found[short] = torch.linalg.pinv(wide[short], rtol=RANK, hermitian=True)
    return found.to(gram)
