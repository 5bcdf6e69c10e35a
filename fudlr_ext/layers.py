"""The LoRA layers of a model, found by their shape, and the flat vector of their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fudlr_ext.errors import EngineError, UnsupportedLayerError
from fudlr_ext.unchanged import PLAIN, Unchanged, plain_weight

PROOF = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Relative difference between a layer's own code and ours that rounding explains."""
WRAPPERS = {
    "DataParallel",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "OptimizedModule",
}


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


class LoraLayer:
    """y = x Wᵀ + bias + scaling·(x Aᵀ)Bᵀ, with A [rank, d_in] and B [d_out, rank].

    Attributes:
        name: As `model.named_modules()` has it.
        module: peft's layer.
        adapter: The adapter's name.
        block_a: Where A lies in the flat vector.
        block_b: Where B does.
        rows_proven: Whether the rows of its inputs were shown to be the samples.
    """

    def __init__(
        self, name: str, module: nn.Module, adapter: str, block_a: Block, block_b: Block
    ) -> None:
        self.name, self.module, self.adapter = name, module, adapter
        self.block_a, self.block_b = block_a, block_b
        self.rows_proven = False
        self._snapshot: Unchanged | None = None
        self._same_numbers = False

    @property
    def base(self) -> nn.Linear:
        """The frozen layer under the adapter."""
        return self.module.base_layer  # type: ignore[return-value]

    def matrices(self) -> tuple[nn.Module, nn.Module]:
        """Return the modules of A and B."""
        module: Any = self.module
        return module.lora_A[self.adapter], module.lora_B[self.adapter]

    @property
    def weights(self) -> tuple[nn.Parameter, nn.Parameter]:
        """A and B, the model's own."""
        a, b = self.matrices()
        return a.weight, b.weight  # type: ignore[return-value]

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

    def check_matrices(self) -> None:
        """Raise where A and B are not what autograd would take their gradients by."""
        for part, module in zip(("lora_A", "lora_B"), self.matrices(), strict=True):
            weight = module._parameters.get("weight")
            hooks = (getattr(weight, "_backward_hooks", None) or {}).values()
            found = ""
            if type(module) is not nn.Linear:
                found = f"its {part} is {type(module).__name__}"
            elif not isinstance(weight, nn.Parameter) or not plain_weight(weight):
                found = f"the weight of its {part} is not there, or no plain tensor"
            elif module.__dict__.get("forward") is not None:
                found = f"its {part} has a forward of its own"
            elif any(_origin(hook) != "fudlr_ext.backward_hook" for hook in hooks):
                found = f"the weight of its {part} has gradient hooks"
            if found:
                _refuse(self.name, found, "Undo that for the engine's pass, or use plain LoRA")

    def why_own_code(self, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Say why the layer's own code has to run; nothing where base and adapter are all of it.

        Raises:
            UnsupportedLayerError: Its own code could not be followed either.
        """
        self.check_matrices()
        names = kwargs.get("adapter_names")
        if names is not None and set(names) != {self.adapter}:
            _refuse(
                self.name,
                f"the call names adapters sample by sample (adapter_names={list(names)[:4]})",
                "Give each adapter's samples a batch of their own, and an engine",
            )
        if args or kwargs:
            return f"it is called with {', '.join(kwargs) or 'several arguments'}"
        if type(self.base) is not nn.Linear:
            return f"its base is {type(self.base).__name__}"
        if not plain_weight(self.base.weight):
            return "its base weight is moved in and out by hooks"
        if type(x) not in PLAIN:
            return f"its input is a {type(x).__name__}"
        if torch.is_autocast_enabled(x.device.type):
            return "autocast is on"
        problem = "" if self._snapshot is None else self._snapshot.broken()
        if self._snapshot is None or problem:
            module: Any = self.module
            a, b = self.matrices()
            named = {"it": module, "its base_layer": self.base, "its lora_A": a, "its lora_B": b}
            named |= {"its lora_dropout": module.lora_dropout[self.adapter]}
            self._snapshot, self._same_numbers = Unchanged(named.items()), False
            problem = self._snapshot.broken()
        return problem

    def prove(self, own: Any, x: Tensor, found: Tensor) -> str:
        """Say whether the layer's own code gives other numbers; tried once after every change."""
        if not self._same_numbers:
            with torch.no_grad():
                expected, found = own(x), found.detach()
            if expected.shape != found.shape or expected.dtype != found.dtype:
                return "its own code returns something else"
            limit = PROOF.get(expected.dtype, 0.0) * expected.abs()
            wrong = (expected - found).norm() > limit.norm()
            if bool(wrong):
                return "its own code gives other numbers than base and adapter"
            self._same_numbers = True
        return ""


class Layout:
    """The LoRA layers of `model` and the order of their parameters in the flat vector.

    The order is that of `model.named_modules()`; a layer's A comes before its B, each row by row.
    """

    def __init__(self, model: nn.Module, adapter: str) -> None:
        self.adapter = adapter
        _check_config(model, adapter)
        self.layers = list(_find(model, adapter))
        self.blocks = [block for layer in self.layers for block in (layer.block_a, layer.block_b)]
        self.names = [block.name for block in self.blocks]
        self.d = sum(prod(block.shape) for block in self.blocks)
        first = self.layers[0].a
        self.device = first.device
        wide = any(layer.a.dtype == torch.float64 for layer in self.layers)
        self.dtype = torch.float64 if wide else torch.float32
        self.check_state(model)

    def parameters(self) -> list[nn.Parameter]:
        """Return the model's LoRA matrices in the order of the blocks."""
        return [weight for layer in self.layers for weight in layer.weights]

    def names_of_layers(self) -> list[str]:
        """Return the layers' names, in their order."""
        return [layer.name for layer in self.layers]

    def check_state(self, model: nn.Module) -> None:
        """Raise where the model is wrapped or compiled, or a layer is not in the state it needs."""
        for module in model.modules():
            kind = module.__class__.__name__
            if kind in WRAPPERS or module._compiled_call_impl is not None:
                name = next(name for name, m in model.named_modules() if m is module)
                _refuse(
                    name,
                    f"it is compiled or wrapped ({kind}), which runs other code than the model's",
                    "Give the engine the model within: `.module`, or `._orig_mod`",
                )
        for layer in self.layers:
            layer.check_state()
            for weight in layer.weights:
                if weight.device != self.device:
                    _refuse(
                        layer.name,
                        f"its LoRA matrices lie on {weight.device}, others on {self.device}",
                        "Put the adapter on one device",
                    )


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
            weight = getattr(module, part)[adapter].weight
            owner = owners.setdefault(id(weight), name)
            if owner != name:
                _refuse(name, f"its {part} is shared with {owner}", "Train without tied adapters")
            a, b = weight.shape
            blocks.append(Block(f"{name}.{part}.weight", start, (a, b)))
            start += a * b
        layer = LoraLayer(name, module, adapter, *blocks)
        layer.check_matrices()
        yield layer
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


def _origin(hook: Any) -> str:
    return str(getattr(getattr(hook, "func", hook), "__module__", ""))


def _check_config(model: nn.Module, adapter: str) -> None:
    """Refuse adapters that are no LoRA, or that train the base's biases as well."""
    found = (
        vars(module).get(name)
        for module in model.modules()
        for name in ("peft_config", "_peft_config")  # the latter of prompts
    )
    config = next((c[adapter] for c in found if isinstance(c, dict) and adapter in c), None)
    kind = str(getattr(config, "peft_type", "LORA")).rpartition(".")[2].upper()
    if kind != "LORA":
        raise UnsupportedLayerError(
            f"adapter {adapter!r} was to be used",
            f"it is of peft's type {kind}, and the engine knows LoRA alone",
            "Train it with a LoraConfig",
        )
    bias = getattr(config, "bias", "none")
    if bias == "all":
        trained = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
    elif bias == "lora_only":
        trained = [
            name
            for name, module in model.named_modules()
            if hasattr(module, "lora_A") and getattr(module.base_layer, "bias", None) is not None
        ]
    else:
        return
    if trained:
        raise UnsupportedLayerError(
            f"adapter {adapter!r} was to be used",
            f"it trains {len(trained)} biases of the base as well (bias={bias!r}; the first: "
            f"{trained[0]}), which are no part of the engine's parameters",
            "Train it with bias='none'",
        )


def _check_foreign(name: str, module: nn.Module, adapter: str) -> None:
    """Refuse trained parts of the adapter that are no LoRA matrices: they would be left out."""
    saved: Any = getattr(module, "modules_to_save", None)
    tokens: Any = getattr(module, "token_adapter", None)
    found = ""
    if isinstance(saved, nn.ModuleDict) and adapter in saved:
        found = "the adapter trains a full copy of it (modules_to_save)"
    elif tokens is not None and adapter in getattr(tokens, "trainable_tokens_delta", ()):
        found = "the adapter trains single tokens of it (trainable_token_indices)"
    if found:
        _refuse(name, found, "Train the adapter with LoRA matrices alone")


def _check_kind(name: str, module: Any, adapter: str) -> None:
    """Refuse every kind of LoRA layer but the plain one on a plain linear layer."""
    base = type(module.base_layer).__name__
    if adapter in getattr(module, "lora_embedding_A", ()):
        _refuse(name, f"it is LoRA on an embedding ({base})", "Target linear layers alone")
    if adapter not in module.lora_A:
        return
    variant = getattr(module, "lora_variant", {}).get(adapter)
    kind = "" if variant is None else type(variant).__name__.removesuffix("LinearVariant")
    if kind or getattr(module, "use_dora", {}).get(adapter):
        _refuse(name, f"it is the LoRA variant {kind or 'Dora'}", "Train it with plain LoRA")
    if hasattr(module, "parameter_name"):
        _refuse(name, "it is LoRA on a bare parameter (target_parameters)", "Target linear layers")
    if type(module.base_layer) is not nn.Linear and base != "Conv1D":
        known = "torch.nn.Linear and the Conv1D of transformers alone"
        _refuse(
            name,
            f"its base is {base}, and the engine knows LoRA on {known}",
            "Target linear layers of an unquantised model",
        )
    weight = module.base_layer.weight
    if type(weight) not in PLAIN or not weight.is_floating_point():
        _refuse(
            name,
            f"its base weight is quantised or sharded ({type(weight).__name__}, {weight.dtype})",
            "Load the model without quantisation, on one device",
        )
    if not hasattr(module.lora_A[adapter], "weight"):
        _refuse(name, "its lora_A is no module (AdaLoRA)", "Train the adapter with plain LoRA")
    if module.lora_B[adapter].bias is not None:
        _refuse(name, "its lora_B has a bias (lora_bias=True)", "Train with lora_bias=False")
