"""A step of an unrolled LoRA training.

Adam and AdamW, on θ, m, v and the gradient G `[d]`, or `[k, d]` for k of them, and θ₀ `[d]`:

    q = G + l2 (θ − θ₀),   g = min(1, clip / (‖q‖ + 10⁻⁶)) q   (+ coupled·θ)
    m' = β₁ m + (1 − β₁) g,   v' = β₂ v + (1 − β₂) g²,
    θ' = kept·θ − rate (m' / c₁) / (√(v' / c₂) + ε),   c_i = 1 − β_iᵗ

with options = (rate, β₁, β₂, ε, c₁, c₂, l2, clip or 0, coupled, kept) in float64. Its derivative
takes changes `[k, d]` of the state before and of G to changes of the state after. Layers and
projections are tables of int64; see csrc/schemas.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

States = tuple[Tensor, Tensor, Tensor]


def _raw(
    theta: Tensor, gradient: Tensor, start: Tensor, o: list[float]
) -> tuple[Tensor, float, float]:
    """q, the factor that it is clipped by, and its norm where it is clipped, else 0."""
    raw = gradient + o[6] * (theta - start)
    norm = float(raw.norm())
    factor = o[7] / (norm + 1e-6) if o[7] else 1.0
    return (raw, factor, norm) if factor < 1 else (raw, 1.0, 0.0)


def adam_move(
    theta: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, start: Tensor, options: Tensor
) -> States:
    """Return θ', m' and v'."""
    if theta.dim() == 2:
        lines = zip(theta, mean, square, gradient, strict=True)
        each = zip(*(adam_move(*line, start, options) for line in lines), strict=True)
        return tuple(torch.stack(part) for part in each)  # type: ignore[return-value]
    o = options.tolist()
    raw, factor, _ = _raw(theta, gradient, start, o)
    g = factor * raw + o[8] * theta
    mean = o[1] * mean + (1 - o[1]) * g
    square = o[2] * square + (1 - o[2]) * g.square()
    moved = (mean / o[4]) / ((square / o[5]).sqrt() + o[3])
    return o[9] * theta - o[0] * moved, mean, square


class _Linear:
    """q, g, ∂θ'/∂m' and ∂θ'/∂v' `[d]` of a step whose `mean` and `square` are m' and v'."""

    def __init__(
        self,
        theta: Tensor,
        mean: Tensor,
        square: Tensor,
        gradient: Tensor,
        start: Tensor,
        o: list[float],
    ) -> None:
        self.raw, self.factor, self.norm = _raw(theta, gradient, start, o)
        self.gradient = self.factor * self.raw + o[8] * theta
        root = (square / o[5]).sqrt()
        whole = root + o[3]
        self.by_mean = -o[0] / o[4] / whole
        by_square = o[0] * (mean / o[4]) / whole.square() / (2 * root * o[5])
        # Where v' is 0, g and m' are too, and v' counts for nothing.
        self.by_square = torch.where(root > 0, by_square, 0.0)

    def clipped(self, change: Tensor) -> Tensor:
        """∂(factor q)/∂q, which is symmetric, times `change` `[k, d]`."""
        if not self.norm:
            return change
        # factor (1 − q qᵀ / (|q| (|q| + e)))
        along = (change @ self.raw) / (self.norm * (self.norm + 1e-6))
        return self.factor * (change - along[:, None] * self.raw)


def adam_tangent(
    d_theta: Tensor, d_mean: Tensor, d_square: Tensor, change: Tensor,
    theta: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, start: Tensor, options: Tensor,
) -> States:  # fmt: skip
    """Return the changes of θ', m' and v'."""
    o = options.tolist()
    linear = _Linear(theta, mean, square, gradient, start, o)
    g = linear.clipped(change + o[6] * d_theta) + o[8] * d_theta
    d_mean = o[1] * d_mean + (1 - o[1]) * g
    d_square = o[2] * d_square + 2 * (1 - o[2]) * linear.gradient * g
    return o[9] * d_theta + linear.by_mean * d_mean + linear.by_square * d_square, d_mean, d_square


def adam_transposed(
    d_theta: Tensor, d_mean: Tensor, d_square: Tensor,
    theta: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, start: Tensor, options: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return what depends on G and on θ, m and v, given what does on θ', m' and v'."""
    o = options.tolist()
    linear = _Linear(theta, mean, square, gradient, start, o)
    d_mean = d_mean + linear.by_mean * d_theta
    d_square = d_square + linear.by_square * d_theta
    g = (1 - o[1]) * d_mean + 2 * (1 - o[2]) * linear.gradient * d_square
    change = linear.clipped(g)
    return change, o[9] * d_theta + o[6] * change + o[8] * g, o[1] * d_mean, o[2] * d_square


def _sketched(
    flat: Tensor, sketch: Tensor, factors: Tensor, table: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor, bool]]:
    """Every matrix's part of vectors `[k, d]` and sketches `[k, p]`, as views, its directions
    `[q, width]`, and whether it is a B."""
    for at, rows, columns, factor, count, place, is_b in table.tolist():
        width, other = (rows, columns) if is_b else (columns, rows)
        small = (count, other) if is_b else (other, count)
        yield (
            flat[:, at : at + rows * columns].unflatten(1, (rows, columns)),
            sketch[:, place : place + count * other].unflatten(1, small),
            factors[factor : factor + count * width].view(count, width),
            bool(is_b),
        )


def lora_project(vectors: Tensor, factors: Tensor, table: Tensor, p: int) -> Tensor:
    """Return S v `[k, p]`."""
    out = vectors.new_zeros(len(vectors), p)
    for matrix, sketch, factor, is_b in _sketched(vectors, out, factors, table):
        sketch.copy_(factor @ matrix if is_b else matrix @ factor.T)
    return out


def lora_lift(sketches: Tensor, factors: Tensor, table: Tensor, d: int) -> Tensor:
    """Return Sᵀ s `[k, d]`; 0 in matrices that have no directions."""
    out = sketches.new_zeros(len(sketches), d)
    for matrix, sketch, factor, is_b in _sketched(out, sketches, factors, table):
        matrix.copy_(factor.T @ sketch if is_b else sketch @ factor)
    return out


def _layers(layers: Tensor, *vectors: Tensor) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Every layer's A `[..., r, in]` and B `[..., out, r]` in each of the vectors, as views."""
    for a, b, rank, width, out in layers.tolist():
        yield [
            (
                vector[..., a : a + rank * width].unflatten(-1, (rank, width)),
                vector[..., b : b + rank * out].unflatten(-1, (out, rank)),
            )
            for vector in vectors
        ]


def _inverses(inverses: Tensor, layers: Tensor) -> list[Tensor]:
    ranks = layers[:, 2].tolist()
    parts = inverses.split([rank * rank for rank in ranks])
    return [part.view(rank, rank) for part, rank in zip(parts, ranks, strict=True)]


def lora_seen(
    shifts: Tensor, theta: Tensor, inverse_a: Tensor, inverse_b: Tensor, layers: Tensor
) -> Tensor:
    """Return shifts `[k, d]` with what b a adds: b a A⁺ to b; to a, (Bᵀ B)⁺ Bᵀ b of what of a is
    outside of A's row space."""
    out = shifts.clone()
    inverses = zip(_inverses(inverse_a, layers), _inverses(inverse_b, layers), strict=True)
    given = zip(_layers(layers, theta, shifts, out), inverses, strict=True)
    for ((a, b), (by_a, by_b), (to_a, to_b)), (of_a, of_b) in given:
        within = by_a @ a.mT @ of_a
        to_b.add_(by_b @ within)
        to_a.add_(of_b @ (b.mT @ by_b) @ (by_a - within @ a))
    return out


def lora_views(
    total: Tensor,
    shifts: Tensor,
    theta: Tensor,
    inverse_a: Tensor,
    inverse_b: Tensor,
    layers: Tensor,
) -> Tensor:
    """Return (bᵀ Ĝ, Ĝ aᵀ) `[k, d]`; Ĝ = U A + B V is what has the views `total` `[d]`, or each
    shift's own `[k, d]`."""
    out = torch.zeros_like(shifts)
    inverses = zip(_inverses(inverse_a, layers), _inverses(inverse_b, layers), strict=True)
    given = zip(_layers(layers, theta, total, shifts, out), inverses, strict=True)
    for ((a, b), (left, right), (by_a, by_b), (to_a, to_b)), (of_a, of_b) in given:
        u = right @ of_a
        v = of_b @ (left - left @ a.mT @ of_a @ a)
        whole = u @ a + b @ v
        to_a.copy_(by_b.mT @ whole)
        to_b.copy_(whole @ by_a.mT)
    return out
