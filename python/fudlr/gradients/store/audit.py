"""What a store's rows lost: by the projection, by their type, and by being recorded early.

A few samples' gradients G [m, d] are taken again, in full, at the adapter that the store is bound
to. With half of them as G₁ and sums of the other half with random signs as probes w:

    energy      ‖S G‖² / ‖G‖²                                    of all LoRA matrices
    influences  1 − ‖ŝ − s‖² / ‖s‖²,  s = G₁ (G₁ᵀG₁/m₁ + damping)⁻¹ w,  ŝ the same of sketches
    cosine      mean of ⟨stored row, S g⟩ / (|stored row| |S g|)
    error       ‖stored rows − S G‖ / ‖S G‖

The inverse is taken on the side of the samples: s = (G₁G₁ᵀ/m₁ + damping)⁻¹ G₁ w.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.gradients.projection import Projection

PROBES = 16


def audit_rows(
    gradients: Tensor, stored: Tensor, projection: Projection, damping: float
) -> dict[str, float]:
    """The four figures, for G `[m, d]` at the store's adapter and the samples' rows `[m, p]`.

    Raises:
        UsageError: Fewer than four samples.
    """
    if len(gradients) < 4 or gradients.shape[0] != stored.shape[0]:
        raise UsageError(
            "a store's rows were to be held against full gradients",
            f"{len(gradients)} gradients and {len(stored)} rows",
            "Take at least four samples, the same for both",
        )
    sketches = projection.project(gradients)
    half = len(gradients) // 2
    probes = _signs(len(gradients) - half).to(gradients) @ gradients[half:]
    exact = _influences(gradients[:half], probes, damping)
    sketched = _influences(sketches[:half], projection.project(probes), damping)
    return {
        "samples": float(len(gradients)),
        "energy": projection.energy_kept(gradients),
        "influences": 1 - _square(sketched - exact) / _square(exact),
        **row_errors(stored, sketches),
    }


def row_errors(stored: Tensor, true: Tensor) -> dict[str, float]:
    """`cosine`, the mean over rows, and `error` ‖stored − true‖ / ‖true‖, of rows `[m, p]`."""
    return {
        "cosine": float(torch.cosine_similarity(stored, true, dim=1).mean()),
        "error": (_square(stored - true) / _square(true)) ** 0.5,
    }


def _signs(count: int) -> Tensor:
    """±1 at random, `[PROBES, count]`, the same on every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, (PROBES, count), generator=generator) * 2.0 - 1.0


def _influences(rows: Tensor, probes: Tensor, damping: float) -> Tensor:
    """(R Rᵀ/m + damping)⁻¹ R Wᵀ, `[m, k]`."""
    rows, probes = rows.double(), probes.double()
    gram = rows @ rows.T / len(rows)
    gram.diagonal().add_(damping)
    return torch.linalg.solve(gram, rows @ probes.T)


def _square(values: Tensor) -> float:
    return float(values.double().square().sum())
