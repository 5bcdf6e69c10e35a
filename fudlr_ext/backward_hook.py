"""Factors of per-sample LoRA gradients from a backward pass that somebody else makes.

For y = base(x) + scaling·B A x, with s = ∂L/∂(B A x) = scaling·∂L/∂y and v = ∂L/∂(A x) = Bᵀ s:
∇B = Σ_t s_t (A x_t)ᵀ and ∇A = Σ_t v_t x_tᵀ. Hooks on peft's own `lora_A` and `lora_B` modules
see all four; they change neither outputs nor gradients. L is whatever the caller differentiates: a
factor of the loss (1/batch, a sample's weight) is in s and v, and the caller's to take out.

A use of a module counts where its gradient arrives, never where it ran, so that gradient
checkpointing, which runs a module twice and differentiates it once, counts once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors
from torch.utils.hooks import RemovableHandle

from fudlr_ext.blocks import Adapted, Factors
from fudlr_ext.collect import in_one_dtype
from fudlr_ext.embeddings import Outside
from fudlr_ext.errors import EngineError, NoGradientError
from fudlr_ext.layers import Layout
from fudlr_ext.reducers import Use

WAITING_BYTES = 2**20
"""Inputs and gradients that are held until their factors are taken, so that small layers' are taken
one after the other: 2% of a training whose steps take 6 ms. Larger ones are still in the cache."""


class Taker(Protocol):
    """What is done with one batch's gradients."""

    def factors(self, uses: Sequence[Use], n: int) -> None:
        """Take factors of n samples' gradients, as `Reducer.add_all` does; autograd is off."""
        ...


class BackwardHook:
    """Hooks on an adapter's LoRA modules; idle until `open`, gone after `remove`.

    Args:
        layout: The adapter's layers.
        names: The blocks whose factors are taken; the gradients of the whole loss are taken of all.

    Raises:
        EngineError: A name that is no block's.
    """

    def __init__(self, layout: Layout, names: Collection[str]) -> None:
        wanted = set(names)
        unknown = sorted(wanted - set(layout.names))
        if unknown or not wanted:
            raise EngineError(
                f"factors of {len(wanted)} LoRA matrices were to be taken from a backward pass",
                f"no matrix is named {unknown[:3]}" if unknown else "there are none to take",
                "Use Engine.names",
            )
        self.layout = layout
        self._wanted = wanted
        self._taker: Taker | None = None
        self._failed: EngineError | None = None
        self._count = 0
        self._waiting: list[tuple[Factors, Tensor, Tensor]] = []
        self._bytes = 0
        self._totals: list[Tensor | None] = []
        self._seen: set[str] = set()
        self._handles: list[RemovableHandle] = []
        for layer in layout.layers:
            layer.check_state()
            for module, factors in layer.watched():
                self._handles.append(module.register_forward_hook(self._watch(layer, factors)))
        for place, weight in enumerate(layout.parameters()):
            self._handles.append(weight.register_hook(partial(self._summed, place)))

    def open(self, n: int, taker: Taker) -> None:
        """Hand what arrives from now on to `taker`, for `n` samples in the first dimension."""
        self._count, self._taker, self._failed = n, taker, None
        self._totals = [None] * len(self.layout.blocks)
        self._seen.clear()

    def close(self, *, check: bool = True) -> None:
        """Stop taking.

        Raises:
            EngineError: A gradient arrived twice, or rows are not samples. It is raised here and
                not in the backward pass, which is the caller's and goes through all the same.
            NoGradientError: Some matrix's gradients never arrived, so that rows would have holes.
            None of them where `check` is off.
        """
        if check and self._failed is None:
            self._take()
        self._waiting, self._bytes, self._taker = [], 0, None
        if self._failed is not None and check:
            raise self._failed
        missing = [name for name in self.layout.names if name in self._wanted - self._seen]
        if missing and check:
            raise NoGradientError(
                f"the gradients of {len(self._wanted)} LoRA matrices were to be taken from a "
                "backward pass",
                f"{len(missing)} never arrived: {', '.join(missing[:3])}",
                "Run forward and backward() within the batch, and let every matrix train",
            )

    def total(self) -> Tensor:
        """Return the gradient [d] of the whole loss, as backward passes since `open` added it."""
        layout, (totals, self._totals) = self.layout, (self._totals, [])
        parts = [
            torch.zeros(block.shape, device=layout.device) if total is None else total
            for block, total in zip(layout.blocks, totals, strict=True)
        ]
        return _flatten_dense_tensors(parts).detach().to(layout.dtype)

    def remove(self) -> None:
        """Take the hooks away; the model is as it was."""
        self._taker = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _watch(self, layer: Adapted, factors: Factors) -> Callable[..., None]:
        prove = layer.prove if isinstance(layer, Outside) else None

        def ran(module: nn.Module, args: Any, output: Tensor) -> None:
            if self._taker is not None and output.requires_grad:
                x = args[0]
                if prove is not None:
                    prove(x.detach(), output)
                use = _Use(layer.name, factors, x, self._taker)
                _hook_gradient(output, partial(self._arrived, use))

        return ran

    def _summed(self, place: int, gradient: Tensor) -> None:
        # While it is held here, autograd adds a copy to the parameter's, and not itself.
        if self._taker is not None:
            before = self._totals[place]
            self._totals[place] = gradient if before is None else before + gradient

    def _arrived(self, use: _Use, delta: Tensor) -> None:
        """Take one use of a module from the backward pass."""
        is_open = self._taker is use.taker
        if use.x is None or not is_open:
            failed = EngineError(
                f"a gradient of {use.name} was to be taken from a backward pass",
                "it arrived twice" if use.x is None else "its batch was closed already",
                "Call backward() once for each forward pass, before the batch is closed",
            )
            if not is_open:
                raise failed
            self._failed = self._failed or failed
            return
        x, use.x = use.x, None
        assert x is not None  # not taken yet
        if delta.shape[0] != self._count:
            self._failed = self._failed or EngineError(
                f"the gradients of {self._count} samples were to be taken",
                f"the input of {use.name} is {list(x.shape)}, whose rows are not the samples",
                "Keep one sample a row in every adapted layer's input: no packing",
            )
            return
        self._waiting.append((use.factors, x, delta))
        self._bytes += x.nbytes + delta.nbytes
        if self._bytes > WAITING_BYTES:
            self._take()

    def _take(self) -> None:
        """Hand over the factors of what waits."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        assert self._taker is not None
        with torch.no_grad():
            uses = [
                in_one_dtype(self.layout, use)
                for make, x, delta in waiting
                for use in make(x, delta)
                if use[0].name in self._wanted
            ]
            self._seen.update([block.name for block, *_ in uses])
            self._taker.factors(uses, self._count)


def _hook_gradient(output: Tensor, hook: Callable[[Tensor], None]) -> None:
    """Do as `output.register_hook`, without the handle to remove it by: half of its time."""
    if output._backward_hooks is not None or output.grad_fn is None:
        output.register_hook(hook)
        return
    output._backward_hooks = OrderedDict([(-1, hook)])  # handles' numbers are from 0 on
    output.grad_fn._register_hook_dict(output)


class _Use:
    """One use of a module in a forward pass, waiting for its gradient."""

    __slots__ = ("factors", "name", "taker", "x")

    def __init__(self, name: str, factors: Factors, x: Tensor, taker: Taker) -> None:
        self.name, self.factors, self.taker = name, factors, taker
        self.x: Tensor | None = x  # None once its gradient arrived
