"""The LoRA layers of a model, found by their shape, and the flat vector of their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fudlr_ext.errors import EngineError, UnsupportedLayerError


@dataclass(frozen=True, eq=False)
class Block:
    """One LoRA matrix, and where its numbers lie in the flat vector."""

    name: str  # as in the files that peft saves: "….q_proj.lora_A.weight"
    start: int
    shape: tuple[int, int]

    @property
    def slice(self) -> slice:
        """Its part of the flat vector."""
        return slice(self.start, self.start + prod(self.shape))

    def of(self, vectors: Tensor) -> Tensor:
        """Return its part of flat vectors [..., d] as matrices [..., a, b]."""
        return vectors[..., self.slice].unflatten(-1, self.shape)


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """y = x Wᵀ + bias + scaling·(x Aᵀ)Bᵀ, with A [rank, d_in] and B [d_out, rank]."""

    name: str
    module: nn.Module
    adapter: str
    block_a: Block
    block_b: Block

    @property
    def base(self) -> nn.Linear:
        """The frozen layer under the adapter."""
        return self.module.base_layer  # type: ignore[return-value]

    @property
    def weights(self) -> tuple[nn.Parameter, nn.Parameter]:
        """A and B, the model's own."""
        return (
            _weight(self.module, "lora_A", self.adapter),
            _weight(self.module, "lora_B", self.adapter),
        )

    @property
    def a(self) -> Tensor:
        """A [rank, d_in], detached."""
        return self.weights[0].detach()

    @property
    def b(self) -> Tensor:
        """B [d_out, rank], detached."""
        return self.weights[1].detach()

    @property
    def scaling(self) -> float:
        """The factor of the adapter's part."""
        return float(self.module.scaling[self.adapter])  # type: ignore[index]

    def check_state(self) -> None:
        """Raise where the layer would not compute base plus this adapter, and nothing else."""
        module: Any = self.module
        active = list(module.active_adapters)
        found = remedy = ""
        if module.merged:
            found = f"{self.name} has the adapters {list(module.merged_adapters)} merged into it"
            remedy = "Call model.unmerge_adapter() first"
        elif module.disable_adapters:
            found = f"the adapters of {self.name} are disabled"
            remedy = "Call model.enable_adapter_layers() first, or leave `disable_adapter()`"
        elif active != [self.adapter]:
            found = f"the active adapters of {self.name} are {active}"
            remedy = f"Call model.set_adapter({self.adapter!r}) first"
        if found:
            raise UnsupportedLayerError(f"adapter {self.adapter!r} was to be used", found, remedy)


class Layout:
    """The LoRA layers of `model` and the order of their parameters in the flat vector.

    The order is that of `model.named_modules()`; a layer's A comes before its B, each row by row.
    """

    def __init__(self, model: nn.Module, adapter: str) -> None:
        self.adapter = adapter
        self.layers = list(_find(model, adapter))
        self.blocks = [block for layer in self.layers for block in (layer.block_a, layer.block_b)]
        self.names = [block.name for block in self.blocks]
        self.d = sum(prod(block.shape) for block in self.blocks)
        first = self.layers[0].a
        self.device = first.device
        wide = any(layer.a.dtype == torch.float64 for layer in self.layers)
        self.dtype = torch.float64 if wide else torch.float32

    def parameters(self) -> list[nn.Parameter]:
        """Return the model's LoRA matrices in the order of the blocks."""
        return [weight for layer in self.layers for weight in layer.weights]


def _weight(module: nn.Module, part: str, adapter: str) -> nn.Parameter:
    return getattr(module, part)[adapter].weight


def _find(model: nn.Module, adapter: str) -> Iterator[LoraLayer]:
    """Yield the adapter's layers; raise on the first that cannot be used, or where there is none.

    Layers are known by the attributes that peft gives them: base_layer, lora_A, lora_B, scaling.
    """
    start = 0
    owners: dict[int, str] = {}
    others: set[str] = set()
    for name, module in model.named_modules():
        _check_foreign(name, module, adapter)
        if not all(hasattr(module, part) for part in ("base_layer", "lora_A", "lora_B", "scaling")):
            continue
        others.update(module.lora_A.keys())
        _check_kind(name, module, adapter)
        if adapter not in module.lora_A:
            continue
        blocks = []
        for part in ("lora_A", "lora_B"):
            weight = _weight(module, part, adapter)
            owner = owners.setdefault(id(weight), name)
            if owner != name:
                _refuse(name, f"its {part} is shared with {owner}", "Train without tied adapters")
            a, b = weight.shape
            blocks.append(Block(f"{name}.{part}.weight", start, (a, b)))
            start += a * b
        yield LoraLayer(name, module, adapter, *blocks)
    if not start:
        found = f"it has only {sorted(others)}" if others else "it has no LoRA layer at all"
        raise EngineError(
            f"the LoRA layers of adapter {adapter!r} were looked for in {type(model).__name__}",
            found,
            "Name an adapter that is there" if others else "Wrap the model with peft first",
        )


def _refuse(name: str, found: str, remedy: str) -> None:
    raise UnsupportedLayerError(
        f"layer {name or '(the model itself)'} was to be used", found, remedy
    )


def _check_foreign(name: str, module: nn.Module, adapter: str) -> None:
    """Refuse trained parts of the adapter that are no LoRA matrices: they would be left out."""
    saved: Any = getattr(module, "modules_to_save", None)
    if isinstance(saved, nn.ModuleDict) and adapter in saved:
        _refuse(
            name,
            "the adapter trains a full copy of it (modules_to_save)",
            "Train the adapter with LoRA matrices alone",
        )
    tokens: Any = getattr(module, "token_adapter", None)
    if tokens is not None and adapter in getattr(tokens, "trainable_tokens_delta", ()):
        _refuse(
            name,
            "the adapter trains single tokens of it (trainable_token_indices)",
            "Train the adapter with LoRA matrices alone",
        )


def _check_kind(name: str, module: Any, adapter: str) -> None:
    """Refuse every kind of LoRA layer but the plain one on a plain linear layer."""
    base = type(module.base_layer).__name__
    if adapter in getattr(module, "lora_embedding_A", ()):
        _refuse(name, f"it is LoRA on an embedding ({base})", "Target linear layers alone")
    if adapter not in module.lora_A:
        return
    variant = getattr(module, "lora_variant", {}).get(adapter)
    if variant is not None:
        kind = type(variant).__name__.removesuffix("LinearVariant")
        _refuse(name, f"it is the LoRA variant {kind}", "Train the adapter with plain LoRA")
    if getattr(module, "use_dora", {}).get(adapter):
        _refuse(name, "it is the LoRA variant Dora", "Train the adapter with plain LoRA")
    if type(module.base_layer) is not nn.Linear:
        _refuse(
            name,
            f"its base is {base}, and the engine knows LoRA on torch.nn.Linear alone",
            "Target linear layers of an unquantised model",
        )
    if not module.base_layer.weight.is_floating_point():
        _refuse(name, "its base weight is quantised", "Load the model without quantisation")
    if module.lora_B[adapter].bias is not None:
        _refuse(name, "its lora_B has a bias (lora_bias=True)", "Train with lora_bias=False")
