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

import json
from pathlib import Path

import torch
from torch import Tensor

from fudlr.common.errors import UsageError
from fudlr.common.files import write_json
from fudlr.gradients.store.errors import StoreError
from fudlr.gradients.store.projection import Projection
from fudlr.gradients.store.spec import Binding, fingerprint

AUDIT = "audit.json"
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


def stale_influences(stale: Tensor, true: Tensor, damping: float) -> float | None:
    """1 − ‖ŝ − s‖² / ‖s‖², ŝ of `stale` rows `[m, p]` and s of the `true` ones; None for m < 4.

    The probes are those of the true rows: a metric's gradient is taken at the adapter as it is.
    """
    half = len(true) // 2
    if half < 2:
        return None
    probes = _signs(len(true) - half).to(true) @ true[half:]
    exact, found = (_influences(rows[:half], probes, damping) for rows in (true, stale))
    return 1 - _square(found - exact) / _square(exact)


def row_errors(stored: Tensor, true: Tensor) -> dict[str, float]:
    """`cosine`, the mean over rows, and `error` ‖stored − true‖ / ‖true‖, of rows `[m, p]`."""
    return {
        "cosine": float(torch.cosine_similarity(stored, true, dim=1).mean()),
        "error": (_square(stored - true) / _square(true)) ** 0.5,
    }


def save_audit(folder: Path, binding: Binding, figures: dict[str, float]) -> None:
    """Write the figures beside the rows that they are of."""
    about = {"binding": binding.__dict__, "figures": figures}
    write_json(folder / AUDIT, {**about, "sha256": fingerprint(about)})


def load_audit(folder: Path, binding: Binding) -> dict[str, float] | None:
    """The figures that `save_audit` wrote; None where the store was not audited.

    Raises:
        StoreError: The file is damaged, or of another store.
    """
    path = folder / AUDIT
    if not path.exists():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        seal = about.pop("sha256")
        found = "" if seal == fingerprint(about) else "does not match its checksum"
        if not found and about["binding"] != binding.__dict__:
            found = "is of another store"
        figures = {str(name): float(value) for name, value in about["figures"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found, figures = f"cannot be read ({error})", {}
    if found:
        raise StoreError(
            f"the audit of the store {folder} was to be read",
            f"{AUDIT} {found}",
            "Delete it, or record the store again",
        )
    return figures


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
