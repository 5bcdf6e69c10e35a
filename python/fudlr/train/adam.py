"""What Adam left of a training, and the damping that its having stopped there stands for.

Adam steps along −g / √v̂ with rates η_t, so that a training whose loss has the mean gradient b more
goes another way by δ,

    dδ/dt = −(H δ − b) / √v̂,    δ(τ) = (1 − e^{−τ P H}) H⁻¹ b,    P = diag(1/√v̂), τ = Σ η_t.

(1 − e^{−x}) / x lies between 1 / (1 + x) and 1.3 times that, so that (H + √v̂/τ)⁻¹ b stands for it:
√v̂ / τ damps what training had no time for, each parameter by its own pace. After a long training it
vanishes beside λ.

Nor does Adam slow down where gradients shrink. Without the share q of the samples, drawn evenly,
the slope s becomes (1 − q) s, and v̂, which is s² and the batches' noise,
(1 − q)² s² + (1 − q) noise. So the step loses less than the slope does, by q κ s,

    κ = (1 + ρ) / 2,    ρ = s² / v̂,

½ where noise decides and 1 where the slope does. So a sample's gradient counts as g_i − κ s, which
orders samples as before, and changes how far an update goes along the slope. At an optimum s = 0.

That early stopping damps: Bishop 1995, "Regularization and complexity control in
feed-forward networks"; with influence functions, for gradient descent: Bae et al. 2024, arXiv
2405.12186 (SOURCE); that Adam's own matrix belongs there, and the rational form, are ours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fudlr.common.errors import DataError

FILE = "adam.safetensors"
SMALLEST = torch.finfo(torch.float32).tiny
"""In place of a v̂ of 0, of a parameter whose gradient was always 0: its damping stays above 0."""


@dataclass(frozen=True)
class Adam:
    """Adam's state at the end of a training.

    Attributes:
        squares: v̂ [d], the running mean of squared gradients, without its bias.
        rates: τ = Σ η_t, the sum of the learning rates of all steps.
    """

    squares: Tensor
    rates: float

    def damping(self, l2: float) -> Tensor:
        """λ + √v̂ / τ, [d]: what stands beside H₀ where the training stopped."""
        return l2 + self.squares.clamp_min(SMALLEST).sqrt() / self.rates

    def pull(self, slope: Tensor) -> Tensor:
        """κ s [d] for the loss's slope s = ∇L(θ*) [d]: what a removal does not take off a step."""
        share = (slope.square() / self.squares.clamp_min(SMALLEST)).clamp_max(1)
        return (1 + share) / 2 * slope

    def save(self, folder: Path) -> None:
        """Write it into `folder`, which is not in place yet."""
        facts = {"facts": json.dumps({"rates": self.rates})}
        save_file({"squares": self.squares.contiguous()}, folder / FILE, facts)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """That of a run's folder; None where the run has none.

        Raises:
            DataError: The file is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                rates = float(json.loads(file.metadata()["facts"])["rates"])
                return cls(file.get_tensor("squares"), rates)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"Adam's state in {path} was to be read",
                f"the file is damaged ({error})",
                "Restore it from a copy, delete it (debias.metric adam is not to be had then), or "
                "train again",
            ) from error
