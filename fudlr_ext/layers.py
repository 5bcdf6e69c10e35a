"""The LoRA layers of a model, found by their shape, and the flat vector of their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fudlr_ext.blocks import Adapted, Block, Factors, refuse
from fudlr_ext.embeddings import PROOF, EmbeddingLora, TrainedTokens
from fudlr_ext.errors import EngineError, UnsupportedLayerError
from fudlr_ext.quantised import quantised, why_no_gradient
from fudlr_ext.unchanged import PLAIN, Unchanged, modules_of, plain_weight, sharded

WRAPPERS = {
    "DataParallel",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "OptimizedModule",
}


class LoraLayer(Adapted):
    """y = x Wᵀ + bias + scaling·((x Aᵀ)Bᵀ + c), with A [rank, d_in] and B [d_out, rank].

    c [d_out] is there with peft's lora_bias alone.

    Attributes:
        quantised: How its base holds its weight, where that is not as plain numbers; else empty.
            Such a base is computed by its own code, forward and back.
    """

    def __init__(self, name: str, module: nn.Module, adapter: str, start: int) -> None:
        super().__init__(name, module, adapter)
        self.quantised = quantised(self.base)
        self._snapshot: Unchanged | None = None
        self._same_numbers = False
        blocks: list[Block] = []
        for part, matrix in zip(("lora_A", "lora_B"), self.matrices(), strict=True):
            (a, b), called = matrix.weight.shape, f"{name}.{part}"  # type: ignore[misc]
            blocks.append(Block(f"{called}.weight", start, (a, b)))
            start += a * b
            if matrix.bias is not None:
                blocks.append(Block(f"{called}.bias", start, (a, 1)))
                start += a
        self.blocks = tuple(blocks)
        self.block_a, self.block_b = blocks[:2]
        self.block_c = blocks[2] if len(blocks) > 2 else None

    @property
    def base(self) -> nn.Linear:
        """The frozen layer under the adapter."""
        return self.module.base_layer  # type: ignore[return-value]

    def matrices(self) -> tuple[nn.Module, nn.Module]:
        """Return the modules of A and B."""
        module: Any = self.module
        return module.lora_A[self.adapter], module.lora_B[self.adapter]

    def places(self) -> tuple[tuple[nn.Module, str], ...]:
        """Return A, B and, where it is there, c."""
        a, b = self.matrices()
        found = ((a, "weight"), (b, "weight"))
        return found if self.block_c is None else (*found, (b, "bias"))

    @property
    def a(self) -> Tensor:
        """A [rank, d_in], detached."""
        return self.weights[0].detach()

    @property
    def b(self) -> Tensor:
        """B [d_out, rank], detached."""
        return self.weights[1].detach()

    @property
    def c(self) -> Tensor | None:
        """The bias of B [d_out], detached, if there is one."""
        return None if self.block_c is None else self.weights[2].detach()

    @property
    def scaling(self) -> float:
        """The factor of the adapter's part."""
        return float(self.module.scaling[self.adapter])  # type: ignore[index]

    def watched(self) -> tuple[tuple[nn.Module, Factors], ...]:
        """Return the modules of A and B."""
        a, b = self.matrices()
        return (a, lambda x, delta: [(self.block_a, delta, x)]), (b, self._factors_of_b)

    def _factors_of_b(self, x: Tensor, delta: Tensor) -> list[tuple[Block, Tensor, Tensor]]:
        found = [(self.block_b, delta, x)]
        if self.block_c is not None:
            found.append((self.block_c, delta, torch.ones_like(x[..., :1])))
        return found

    def check_parameters(self) -> None:
        """Raise where A and B are not what autograd would take their gradients by."""
        matrices = list(zip(("lora_A", "lora_B"), self.matrices(), strict=True))
        for part, module in matrices:
            if type(module) is not nn.Linear:
                refuse(self.name, f"its {part} is {type(module).__name__}", "Use plain LoRA")
        super().check_parameters()
        for part, module in matrices:
            if module.__dict__.get("forward") is not None:
                refuse(self.name, f"its {part} has a forward of its own", "Undo that for the pass")

    def why_own_code(self, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Say why the layer's own code has to run; nothing where base and adapter are all of it.

        Raises:
            UnsupportedLayerError: Its own code could not be followed either.
        """
        self.check_parameters()
        self.check_call(kwargs)
        if args or kwargs:
            return f"it is called with {', '.join(kwargs) or 'several arguments'}"
        if not self.quantised:
            if sharded(self.base.weight):
                refuse(
                    self.name,
                    "its base weight is sharded while it is called (tensor parallelism)",
                    "Shard the base by FSDP, which gathers a layer when it is called, or by none",
                )
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
        self.blocks = list(dict.fromkeys(b for layer in self.layers for b in layer.blocks))
        self.names = [block.name for block in self.blocks]
        # Other names, by which a state dict has a parameter once more.
        self.tied = {f"{x.name}.trainable_tokens_delta" for x in self.layers} - set(self.names)
        self.d = sum(prod(block.shape) for block in self.blocks)
        trained = self.parameters()
        self.device = trained[0].device
        wide = any(p.dtype == torch.float64 for p in trained)
        self.dtype = torch.float64 if wide else torch.float32
        self.check_state(model)

    def parameters(self) -> list[nn.Parameter]:
        """Return the model's own parameters in the order of the blocks."""
        pairs = (zip(layer.blocks, layer.weights, strict=True) for layer in self.layers)
        return list({block: weight for each in pairs for block, weight in each}.values())

    def check_whole(self) -> None:
        """Raise where a layer's base weight is sharded: what FSDP gathered is gone after the first
        of two backward passes."""
        for layer in self.layers:
            if sharded(getattr(getattr(layer, "base", None), "weight", None)):
                refuse(
                    layer.name,
                    "its base weight is sharded over processes, and a curvature's product goes "
                    "back through it twice",
                    "Use a curvature of per-sample gradients (empirical Fisher), or a whole base",
                )

    def names_of_layers(self) -> list[str]:
        """Return the layers' names, in their order."""
        return [layer.name for layer in self.layers]

    def check_state(self, model: nn.Module) -> None:
        """Raise where the model is wrapped or compiled, or a layer is not in the state it needs."""
        for module in modules_of(model):
            kind = module.__class__.__name__
            if kind in WRAPPERS or module._compiled_call_impl is not None:
                name = next(name for name, m in model.named_modules() if m is module)
                refuse(
                    name,
                    f"it is compiled or wrapped ({kind}), which runs other code than the model's",
                    "Give the engine the model within: `.module`, or `._orig_mod`",
                )
        for layer in self.layers:
            layer.check_state()
            for weight in layer.weights:
                if weight.device != self.device:
                    refuse(
                        layer.name,
                        f"its LoRA matrices lie on {weight.device}, others on {self.device}",
                        "Put the adapter on one device",
                    )
                if weight.dtype == torch.float16 and self.device.type == "cpu":
                    refuse(
                        layer.name,
                        "its adapter is in float16, which only GPUs compute",
                        "Hold the adapter in float32, as peft does by default; the base may stay",
                    )


def _find(model: nn.Module, adapter: str) -> Iterator[Adapted]:
    """Yield the adapter's layers; raise on the first that cannot be used, or where there is none.

    Layers are known by the attributes that peft gives them: base_layer, lora_A, lora_B, scaling;
    those of single trained tokens by trainable_tokens_delta.
    """
    start = 0
    owners: dict[int, Adapted] = {}
    others: set[str] = set()
    tried: set[str] = set()
    for name, module in model.named_modules():
        _check_foreign(name, module, adapter)
        found = _layer(name, module, adapter, start, others, owners)
        if found is None:
            continue
        found.check_parameters()
        kind = getattr(found, "quantised", "")
        if kind and kind not in tried:
            tried.add(kind)
            _check_gradient(found)
        for block, weight in zip(found.blocks, found.weights, strict=True):
            owner = owners.setdefault(weight.data_ptr(), found)
            if owner is not found and block not in owner.blocks:
                part = block.name.removeprefix(f"{name}.").removesuffix(".weight")
                refuse(
                    name, f"its {part} is shared with {owner.name}", "Train without tied adapters"
                )
            start = max(start, block.start + prod(block.shape))
        yield found
    if not start:
        known = f"it has only {sorted(others)}" if others else "it has no LoRA layer at all"
        raise EngineError(
            f"the LoRA layers of adapter {adapter!r} were looked for in {type(model).__name__}",
            known,
            "Name an adapter that is there" if others else "Wrap the model with peft first",
        )


def _check_gradient(layer: Any) -> None:
    """Refuse a quantised layer through which no gradient comes back."""
    problem = why_no_gradient(layer.base, layer.a.shape[1], layer.a)
    if problem:
        refuse(
            layer.name,
            f"its base weight is quantised ({layer.quantised}), and {problem}",
            "Load the model unquantised, or quantised by weight alone",
        )


def _layer(  # noqa: PLR0917
    name: str,
    module: Any,
    adapter: str,
    start: int,
    others: set[str],
    owners: dict[int, Adapted],
) -> Adapted | None:
    """Return the adapter's layer that a module is, if it is one; note `others` on it."""
    tokens = getattr(module, "trainable_tokens_delta", None)
    if tokens is not None and hasattr(module, "token_indices"):
        others.update(tokens.keys())
        if adapter not in tokens:
            return None
        tied = owners.get(tokens[adapter].data_ptr())
        return TrainedTokens(name, module, adapter, start, None if tied is None else tied.blocks[0])
    if not all(hasattr(module, part) for part in ("base_layer", "lora_A", "lora_B", "scaling")):
        return None
    embedded = getattr(module, "lora_embedding_A", {})
    others.update(module.lora_A.keys(), embedded.keys())
    _check_kind(name, module, adapter)
    if adapter in embedded:
        return EmbeddingLora(name, module, adapter, start)
    return LoraLayer(name, module, adapter, start) if adapter in module.lora_A else None


def _check_config(model: nn.Module, adapter: str) -> None:
    """Refuse adapters that are no LoRA, or that train the base's biases as well."""
    found = (
        vars(module).get(name)
        for module in model.modules()
        for name in ("peft_config", "_peft_config")  # the latter of prompts
    )
    config = next((c[adapter] for c in found if isinstance(c, dict) and adapter in c), None)
    kind = str(getattr(config, "peft_type", "LORA")).rpartition(".")[2].upper()
    if kind not in {"LORA", "TRAINABLE_TOKENS"}:
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
    if isinstance(saved, nn.ModuleDict) and adapter in saved:
        refuse(
            name,
            "the adapter trains a full copy of it (modules_to_save)",
            "Train the adapter with LoRA matrices alone, or with trainable_token_indices",
        )


def _check_kind(name: str, module: Any, adapter: str) -> None:
    """Refuse every kind of LoRA layer but the plain one on a plain linear layer."""
    base = type(module.base_layer).__name__
    embedded = adapter in getattr(module, "lora_embedding_A", ())
    if not embedded and adapter not in module.lora_A:
        return
    variant = getattr(module, "lora_variant", {}).get(adapter)
    kind = "" if variant is None else type(variant).__name__.removesuffix("LinearVariant")
    if kind or getattr(module, "use_dora", {}).get(adapter):
        refuse(name, f"it is the LoRA variant {kind or 'Dora'}", "Train it with plain LoRA")
    if hasattr(module, "parameter_name"):
        refuse(name, "it is LoRA on a bare parameter (target_parameters)", "Target linear layers")
    if embedded:
        if not isinstance(module.base_layer, nn.Embedding):
            refuse(name, f"it is LoRA on {base} as an embedding", "Target linear layers")
        return
    packed = quantised(module.base_layer)
    if not packed and type(module.base_layer) is not nn.Linear and base != "Conv1D":
        known = "torch.nn.Linear, the Conv1D of transformers and the quantised layers"
        refuse(
            name,
            f"its base is {base}, and the engine knows LoRA on {known} of bitsandbytes, torchao, "
            "GPTQ and AWQ alone",
            "Target linear layers",
        )
    weight = getattr(module.base_layer, "weight", None)
    if sharded(weight):
        return  # FSDP gathers it for the time of a call, where that is looked at
    if not packed and (type(weight) not in PLAIN or not weight.is_floating_point()):  # type: ignore[union-attr]
        refuse(
            name,
            "its base weight is quantised in a way that the engine does not know "
            f"({type(weight).__name__}, {weight.dtype})",  # type: ignore[union-attr]
            "Load the model on one device, unquantised, or by bitsandbytes, torchao, GPTQ or AWQ",
        )
    if not hasattr(module.lora_A[adapter], "weight"):
        refuse(name, "its lora_A is no module (AdaLoRA)", "Train the adapter with plain LoRA")
