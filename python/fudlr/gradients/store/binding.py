"""What a store's rows were made from, and how the training went from them."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from fudlr.common.digest import digest
from fudlr.common.errors import UsageError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LORA = re.compile(r"\.lora_[A-Za-z]+\.")


@dataclass(frozen=True)
class Binding:
    """Digests (sha256, hexadecimal) of all that determines a store's rows.

    Attributes:
        model: The frozen weights.
        adapter: The LoRA parameters that the recording ended at.
        data: The samples.
        order: How ids number the samples, and where it matters the batches' order.
    """

    model: str
    adapter: str
    data: str
    order: str

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, str) or not _SHA256.fullmatch(value):
                raise UsageError(
                    f"a store was to be bound to a {name} by its sha256",
                    f"{value!r} is not 64 hexadecimal digits",
                    "Use fudlr.gradients.store.digest(...)",
                )

    def differences(self, other: Binding) -> list[str]:
        """Which of model, adapter, data and order are not the same."""
        names = (entry.name for entry in fields(self))
        return [name for name in names if getattr(self, name) != getattr(other, name)]


def model_fingerprint(model: nn.Module) -> str:
    """sha256 of a model's weights without its LoRA adapters: the same with or without one loaded.

    Args:
        model: A peft model; names of weights count as they are in it.
    """
    frozen = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor) and not _LORA.search(name)
    }
    return digest(frozen)


@dataclass(frozen=True)
class Recipe:
    """How a training made its steps from gradients, so far as the unrolled update repeats it.

    With g = clip(Σ u_i g_i + l2 (θ − θ₀)), PyTorch's Adam or AdamW at the recorded rates.

    Attributes:
        optimiser: `Adam` or `AdamW`.
        betas, eps, weight_decay: Its options; decay is added to g in Adam, and taken off θ in
            AdamW.
        l2: λ of a pull towards the start of the training.
        clip: Largest norm of the gradient over all LoRA parameters; None for any.
    """

    optimiser: str = "Adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    l2: float = 0.0
    clip: float | None = None

    @classmethod
    def of(
        cls, optimiser: torch.optim.Optimizer, *, l2: float = 0.0, clip: float | None = None
    ) -> Recipe:
        """That of a PyTorch optimiser.

        Raises:
            UsageError: One whose steps cannot be repeated, by name.
        """
        # A wrapper such as accelerate's has the optimiser itself within.
        inner = getattr(optimiser, "optimizer", optimiser)
        kind = type(inner).__name__
        groups = [group for group in inner.param_groups if group["params"]]
        names = ("betas", "eps", "weight_decay", "amsgrad", "maximize")
        options = [{name: group.get(name) for name in names} for group in groups]
        found = ""
        if type(inner) not in (torch.optim.Adam, torch.optim.AdamW):
            found = f"the optimiser is {type(inner).__module__}.{kind}"
        elif any(other != options[0] for other in options):
            found = "its groups of parameters have different options"
        elif options[0]["amsgrad"] or options[0]["maximize"]:
            found = "it is set to amsgrad or maximize"
        if found:
            raise UsageError(
                "a whole training was to be recorded, to be unrolled later",
                found,
                "Train with torch.optim.Adam or AdamW and their usual options, or record the last "
                "epoch alone, which serves the closed form",
            )
        chosen: dict[str, Any] = options[0]
        first, second = map(float, chosen["betas"])
        numbers = (float(chosen["eps"]), float(chosen["weight_decay"]), l2, clip)
        return cls(kind, (first, second), *numbers)
