"""Seeded random factors. E[PᵀP] = 1, so that inner products of sketches are unbiased.

A product of independent factors on both sides is unbiased as well: E[P_lᵀP_l ⊗ P_rᵀP_r] = 1.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.gradients.store.projection import Factors, Matrices, Projection, Shapes, chosen

KINDS = ("gaussian", "orthonormal", "countsketch")


def random_projection(
    shapes: Shapes,
    dims: int,
    *,
    kind: str = "orthonormal",
    seed: int = 0,
    matrices: Matrices = "B",
    rank_dims: int | None = None,
) -> Projection:
    """A projection by random factors; equal arguments give equal factors.

    Args:
        shapes: The LoRA matrices in flat order, `Engine.shapes`.
        dims: q on the wide side (d_out of B, d_in of A); a side no wider stays as it is.
        kind: `gaussian`: entries N(0, 1/q). `orthonormal`: orthonormal rows times √(a/q), of
            smaller variance. `countsketch`: one ±1 in each column (Charikar, Chen and
            Farach-Colton 2002), which costs a read of the factor and no multiplication.
        seed: Each side of each matrix has its own stream, drawn from this and its name.
        matrices: `B` alone, or `both` A and B.
        rank_dims: q on the rank side; None leaves it.
    """
    if kind not in KINDS or dims < 1 or (rank_dims is not None and rank_dims < 1):
        raise UsageError(
            f"a random projection of kind {kind} to {dims} × {rank_dims or 'rank'} was asked",
            "kinds are " + ", ".join(KINDS) + ", and dimensions start at 1",
            "Change them",
        )
    factors = {}
    for name, is_b in chosen(shapes, matrices).items():
        counts = (dims, rank_dims) if is_b else (rank_dims, dims)
        left, right = (
            None
            if count is None or count >= width
            else random_factor(kind, count, width, f"{seed}/{name}/{side}")
            for side, count, width in zip(("left", "right"), counts, shapes[name], strict=True)
        )
        factors[name] = Factors(left, right)
    return Projection(shapes, factors, kind=kind, seed=seed)


def random_factor(kind: str, count: int, width: int, key: str) -> Tensor:
    """P `[count, width]` with E[PᵀP] = 1, drawn from the text `key`."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
    generator = torch.Generator().manual_seed(seed)
    if kind == "countsketch":
        rows = torch.randint(count, (width,), generator=generator)
        signs = torch.randint(2, (width,), generator=generator) * 2.0 - 1.0
        factor = torch.zeros(count, width)
        factor[rows, torch.arange(width)] = signs
        return factor
    normal = torch.randn(width, count, generator=generator)
    if kind == "gaussian":
        return normal.T.contiguous() / count**0.5
    basis, upper = torch.linalg.qr(normal.double())
    # Q is uniform among orthonormal frames only once R's diagonal is made positive.
    basis = basis * upper.diagonal().sign()
    return (basis.T * (width / count) ** 0.5).float().contiguous()
