"""What an adapter trains, as parts of one flat vector; what all kinds of its layers have in common.

Whatever the kind of layer, the gradient of each of its parameters is a sum of outer products, one a
position: G = Σ_t left_t right_tᵀ. That is all that reducers see.
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fudlr_ext.errors import UnsupportedLayerError
from fudlr_ext.unchanged import plain_weight

Sides = tuple[Tensor | None, Tensor | None]
"""P_l [q, a] and P_r [r, b] for a matrix [a, b]; None leaves a side as it is."""


@dataclass(frozen=True, eq=False)
class Block:
    """One trained parameter, and where its numbers lie in the flat vector.

    A vector [a] of biases is a matrix [a, 1].
    """

    name: str  # as in the files that peft saves: "….q_proj.lora_A.weight"
    start: int
    shape: tuple[int, int]

    @property
    def slice(self) -> slice:
        """The parameter's part of the flat vector."""
        return slice(self.start, self.start + prod(self.shape))

    @property
    def index(self) -> builtins.slice | Tensor:
        """Its places in the flat vector."""
        return self.slice

    def of(self, vectors: Tensor) -> Tensor:
        """Return its part of flat vectors [..., d] as matrices [..., a, b]."""
        return vectors[..., self.index].unflatten(-1, self.shape)

    def sides(self, sides: Sides) -> Sides:
        """Return P_l [q, a] and P_r [r, b], given for the whole parameter, for it."""
        return sides

    def among(self, whole: Tensor, part: Tensor) -> None:
        """Add what belongs to it, [n, a, b], to that of the `whole` parameter."""
        whole += part


@dataclass(frozen=True, eq=False)
class Lines(Block):
    """Some rows (`dim` 0) or columns (1) of a block, those of the tokens that a batch has.

    An embedding's gradient has one row or column a token of the vocabulary, nearly all of them 0.
    """

    whole: Block
    dim: int
    lines: Tensor  # rising, each once

    @classmethod
    def of_block(cls, block: Block, dim: int, lines: Tensor) -> Lines:
        """Return these rows or columns of a block."""
        a, b = block.shape
        shape = (len(lines), b) if dim == 0 else (a, len(lines))
        return cls(block.name, block.start, shape, block, dim, lines)

    @property
    def index(self) -> Tensor:
        """Its places in the flat vector."""
        a, b = self.whole.shape
        places = torch.arange(self.start, self.start + a * b, device=self.lines.device)
        return places.view(a, b).index_select(self.dim, self.lines).flatten()

    def sides(self, sides: Sides) -> Sides:
        """Return the sides with the lines' columns alone."""
        own = [*sides]
        side = own[self.dim]
        own[self.dim] = None if side is None else side.index_select(1, self.lines)
        return own[0], own[1]

    def among(self, whole: Tensor, part: Tensor) -> None:
        """Add what belongs to it, [n, a, b], to that of the whole parameter."""
        if part.shape[self.dim + 1] == len(self.lines) < whole.shape[self.dim + 1]:
            whole.index_add_(self.dim + 1, self.lines, part)
        else:
            whole += part


Factors = Callable[[Tensor, Tensor], Iterable[tuple[Block, Tensor, Tensor]]]
"""Makes the factors [..., a] and [..., b] of some blocks from a module's input and δ, the gradient
of its output."""


class Adapted(ABC):
    """A layer that an adapter trains parameters of.

    Attributes:
        name: As `model.named_modules()` has it.
        module: peft's layer.
        adapter: The adapter's name.
        blocks: Its parameters' places in the flat vector.
        rows_proven: Whether the rows of its inputs were shown to be the samples.
    """

    blocks: tuple[Block, ...]

    def __init__(self, name: str, module: nn.Module, adapter: str) -> None:
        self.name, self.module, self.adapter = name, module, adapter
        self.rows_proven = False

    @abstractmethod
    def places(self) -> tuple[tuple[nn.Module, str], ...]:
        """Return where each block's parameter is: its module, and its name there."""

    @abstractmethod
    def watched(self) -> tuple[tuple[nn.Module, Factors], ...]:
        """Return the modules of whose inputs and δ the factors of all blocks are made."""

    @property
    def weights(self) -> tuple[nn.Parameter, ...]:
        """The model's own parameters, one a block."""
        return tuple(owner._parameters[key] for owner, key in self.places())  # type: ignore[misc]

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

    def check_parameters(self) -> None:
        """Raise where its parameters are not what autograd would take their gradients by."""
        for block, (owner, key) in zip(self.blocks, self.places(), strict=True):
            weight = owner._parameters.get(key)
            hooks = (getattr(weight, "_backward_hooks", None) or {}).values()
            part = block.name.removeprefix(f"{self.name}.").removesuffix(".weight")
            found = ""
            if not isinstance(weight, nn.Parameter) or not plain_weight(weight):
                found = f"the weight of its {part} is not there, or no plain tensor"
            elif any(_origin(hook) != "fudlr_ext.backward_hook" for hook in hooks):
                found = f"the weight of its {part} has gradient hooks"
            if found:
                refuse(self.name, found, "Undo that for the engine's pass, or use plain LoRA")

    def check_call(self, kwargs: dict[str, Any]) -> None:
        """Raise where a call of the layer names other adapters."""
        names = kwargs.get("adapter_names")
        if names is not None and set(names) != {self.adapter}:
            refuse(
                self.name,
                f"the call names adapters sample by sample (adapter_names={list(names)[:4]})",
                "Give each adapter's samples a batch of their own, and an engine",
            )

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Have its parameters out of the graph for a while.

        A use of one by itself can then be told from this one.
        """
        before = list(zip(self.places(), self.weights, strict=True))
        try:
            for (owner, key), weight in before:
                owner._parameters[key] = weight.detach()  # type: ignore[assignment]
            yield
        finally:
            for (owner, key), weight in before:
                owner._parameters[key] = weight


def refuse(name: str, found: str, remedy: str) -> NoReturn:
    """Raise for a layer."""
    raise UnsupportedLayerError(
        f"layer {name or '(the model itself)'} was to be used", found, remedy
    )


def _origin(hook: Any) -> str:
    return str(getattr(getattr(hook, "func", hook), "__module__", ""))
