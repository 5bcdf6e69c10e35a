"""Lets fused decoder layers have those calls of a model's decoder in which they give the same.

`FusedCall` makes sure, in every call, of what no probe can know: that nothing was hooked, patched
or changed since, that the call asks for nothing else than hidden states, and that its mask is
causal with nothing but padding left out. Within such a call the model's loop meets stand-ins in
place of its layers (`Stages`); the last of them computes all layers, fused, or one after the other
by their own code where the mask or another argument asks for something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fudlr_ext.decoder import Stack
from fudlr_ext.decoder_layer import DecoderLayer
from fudlr_ext.packed import Packed, PackedBatch, pack

Run = Callable[[DecoderLayer, Packed, Tensor], Tensor]
"""Computes a decoder layer from x [T, d], packed; the graph is its own affair."""

UNDERSTOOD = {"attention_mask", "position_embeddings", "position_ids", "cache_position"}
"""Arguments of a layer that the fused ones follow, or that mean nothing to them."""
OFF = ("output_", "use_cache")
"""Beginnings of arguments that may be False beside these."""


class UnservedError(Exception):
    """A pass over fused layers cannot give what the model would: to be done again without them."""


Unserved = Callable[[str], UnservedError]
"""Makes the error for a reason, and notes that the pass is to be done again."""


class FusedCall:
    """Stands before a decoder's calls within one pass, and lets the fused layers have those it may.

    Args:
        stack: The layers.
        dtype: What they compute in.
        padded: Whether padding may be left out where all positions are outputs. A gradient that
            arrives there in the backward pass is an `UnservedError`.

    Attributes:
        positions: The only positions whose hidden states will be looked at, [n, L]; None: all.
        wanted: Is told, by its `served`, that the call gave these positions alone, as [n, L, d].
        fused: How many calls the fused layers served.
        reasons: Why calls were left to the model's own code.
        broken: Why the pass has to be done again.
    """

    def __init__(self, stack: Stack, dtype: torch.dtype, padded: bool = True) -> None:
        self.stack, self.dtype, self.padded = stack, dtype, padded
        self.run: Run | None = None
        self.positions: Tensor | None = None
        self.wanted: Any = None
        self.fused = 0
        self.reasons: list[str] = []
        self.broken = ""
        self._layers: Any = None
        self._cache_dropped = False

    @contextmanager
    def installed(self, run: Run) -> Iterator[None]:
        """Stand there for a while; `run` computes a layer."""
        parent, self.run = self.stack.parent, run
        assert parent is not None
        handles = [
            parent.register_forward_pre_hook(self.enter, with_kwargs=True),
            parent.register_forward_hook(self.leave, always_call=True),
        ]
        try:
            yield
        finally:
            self.leave()
            self.run = None
            for handle in handles:
                handle.remove()

    def enter(self, parent: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Put the stand-ins in place of the layers, where the call may be served."""
        self._cache_dropped = False
        if self.wanted is not None:
            self.wanted.served = False
        if self._layers is not None:  # called from within itself
            raise self.unserved("the decoder calls itself")
        problem = self._problem(parent, kwargs)
        if problem:
            self.reasons.append(problem)
            return None
        self._layers = parent._modules[self.stack.name]
        assert self.stack.probed is not None
        parent._modules[self.stack.name] = Stages(
            self._layers, self.whole, self.unserved, self.stack.probed.in_tuple
        )
        if kwargs.get("use_cache") is None:
            # A cache that nobody asked for would be filled by the layers' own code alone.
            self._cache_dropped = True
            return args, {**kwargs, "use_cache": False}
        return None

    def leave(self, *_: Any) -> None:
        """Put the layers back."""
        if self._layers is not None:
            self.stack.parent._modules[self.stack.name] = self._layers  # type: ignore[union-attr]
            self._layers = None

    def _problem(self, parent: nn.Module, kwargs: dict[str, Any]) -> str:
        config = getattr(parent, "config", None)
        said = {**(vars(config) if hasattr(config, "__dict__") else {}), **kwargs}
        for name, value in said.items():
            if name.startswith("output_") and value is not None and value is not False:
                return f"{name} was asked for"
        if kwargs.get("use_cache"):
            return "use_cache=True was asked for"
        if torch.is_autocast_enabled(next(self.stack.weights()).device.type):  # type: ignore[union-attr]
            return "autocast is on"
        assert self.stack.snapshot is not None
        problem = self.stack.snapshot.broken()
        self.stack.stale = self.stack.stale or bool(problem)
        return problem

    def unserved(self, reason: str) -> UnservedError:
        """Return the error that has the pass done again without fused layers."""
        self.broken = reason
        return UnservedError(reason)

    def whole(self, x: Tensor, given: list[tuple[Any, Any]]) -> Any:
        """Compute all layers from x [n, t, d] and what each was called with."""
        found = self._locate(x, given)
        if isinstance(found, str):
            if self._cache_dropped:  # own code would have had one: all again
                raise self.unserved(found)
            self.reasons.append(found)
            out: Any = x
            for layer, (args, kwargs) in zip(self._layers, given, strict=True):
                out = layer(out[0] if isinstance(out, tuple) else out, *args, **kwargs)
            return out
        out = self._fuse(x, found)
        assert self.stack.probed is not None
        return (out,) if self.stack.probed.in_tuple else out

    def _fuse(self, x: Tensor, batch: PackedBatch) -> Tensor:
        n, t, d = x.shape
        dtype = x.dtype
        x = x.reshape(n * t, d)
        if batch.rows is not None:
            x = x[batch.rows]
        x = x.to(self.dtype)
        assert self.run is not None
        everything = batch.packed.everything()
        for layer in self.stack.layers:
            last = layer is self.stack.layers[-1]
            x = self.run(layer, batch.packed if last else everything, x)
        self.fused += 1
        x = x.to(dtype)
        if batch.slots is not None:
            self.wanted.served = True
            return x[batch.slots]
        if batch.rows is not None:
            full = x.new_zeros(n * t, d).index_copy(0, batch.rows, x)
            if full.requires_grad:
                rows = batch.rows
                full.register_hook(lambda grad: self._guarded(grad, rows))
            x = full
        return x.reshape(n, t, d)

    def _guarded(self, grad: Tensor, rows: Tensor) -> None:
        left_out = torch.ones(len(grad), dtype=torch.bool, device=grad.device)
        left_out[rows] = False
        if bool(grad[left_out].any()):
            raise self.unserved("the loss depends on what the model computes for padding")

    def _locate(self, x: Tensor, given: list[tuple[Any, Any]]) -> PackedBatch | str:
        """Return where the positions lie, or what the fused layers cannot do."""
        first = given[0][1]
        problem = _arguments(given) or self._rotation(first["position_embeddings"], x)
        if problem:
            return problem
        found = self._causal(first.get("attention_mask"), x)
        if isinstance(found, str):
            return found
        positions = self.positions
        if positions is not None and positions.shape[0] != len(x):
            positions = None
        cos, sin = (each.to(self.dtype) for each in first["position_embeddings"])
        batch = pack(found[0], positions, found[1], (cos, sin))
        if batch is None:
            return "the attention mask is not causal, or a position asked for is padding"
        if batch.rows is not None and batch.slots is None and not self.padded:
            return "padded positions are among the outputs"
        return batch

    def _rotation(self, angles: Any, x: Tensor) -> str:
        """Say why x and its angles are not what the fused layers take; nothing where they are."""
        if x.dim() != 3 or not x.numel():
            return "the layers' input is not [n, t, d]"
        shape = (x.shape[1], self.stack.layers[0].width)
        if any(each.shape[1:] != shape or len(each) not in {1, len(x)} for each in angles):
            return "the rotation is not of whole heads"
        if any(each.device != x.device for each in angles):
            return "angles and hidden states lie on different devices"
        return ""

    def _causal(self, mask: Any, x: Tensor) -> tuple[Tensor, Tensor] | str:
        """Return which positions are real, [n, t], and whether these see what they should, []."""
        n, t = x.shape[:2]
        if mask is None:
            assert self.stack.probed is not None
            if not self.stack.probed.causal_without_mask:
                return "without a mask this attention is not causal"
            real = torch.ones(n, t, dtype=torch.bool, device=x.device)
            return real, real.all()
        if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[1:] != (1, t, t):
            return "the attention mask is not of the form [n, 1, t, t]"
        if len(mask) not in {1, n} or mask.device != x.device:
            return "the attention mask is of another batch or device"
        seen = (mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > -1).expand(n, t, t)
        real = seen.diagonal(dim1=1, dim2=2)
        expected = torch.ones(t, t, dtype=torch.bool, device=x.device).tril() & real[:, None, :]
        wrong = ((seen != expected) & real[:, :, None]).any()
        if mask.dtype != torch.bool:
            wrong = wrong | (seen & (mask[:, 0] != 0)).any()
        return real, wrong.logical_not()


def running(model: nn.Module) -> FusedCall | None:
    """Return what stands before the decoder's calls, where an engine's pass over it is going on."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, FusedCall):
                return owner
    return None


def _arguments(given: list[tuple[Any, Any]]) -> str:
    """Say what the layers were called with that fused ones do not follow."""
    first = given[0][1]
    for args, kwargs in given:
        if args:
            return "a layer is called with more than its input by position"
        for name, value in kwargs.items():
            off = value is None or (value is False and name.startswith(OFF))
            if name not in UNDERSTOOD and not off:
                return f"a layer is called with {name}"
        if not all(_same(kwargs.get(name), first.get(name)) for name in UNDERSTOOD):
            return "layers are called with masks or angles of their own"
    angles = first.get("position_embeddings")
    if not (isinstance(angles, tuple) and len(angles) == 2):
        return "a layer is called without position_embeddings"
    return ""


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return all(_same(a, b) for a, b in zip(one, other, strict=True))
    return False


class Stages(nn.ModuleList):
    """The layers' stand-ins, with the layers themselves as its modules.

    Args:
        layers: The model's own.
        whole: Computes all of them from the first one's input and what each was called with,
            its arguments by position and by name.
        unserved: Makes the error where the loop does something else.
        in_tuple: Whether the layers return tuples.
    """

    def __init__(
        self,
        layers: Any,
        whole: Callable[[Tensor, list[tuple[Any, Any]]], Any],
        unserved: Unserved,
        in_tuple: bool,
    ) -> None:
        super().__init__(layers)
        self.__dict__["_stages"] = [_Stage(self, i, layer) for i, layer in enumerate(layers)]
        self.__dict__["_ways"] = (whole, unserved, in_tuple)
        self.__dict__["_line"] = (None, None, [])

    def take(self, index: int, x: Any, args: Any, kwargs: Any) -> Any:
        """Take one call of a layer."""
        whole, unserved, in_tuple = self.__dict__["_ways"]
        first, token, given = self.__dict__["_line"]
        if index == 0:
            first, token, given = x, None, []
        elif index != len(given) or x is not token:
            raise unserved("the model changes hidden states between its layers")
        given.append((args, kwargs))
        if index < len(self) - 1:
            token = _Token(first, unserved)
            self.__dict__["_line"] = (first, token, given)
            return (token,) if in_tuple else token
        self.__dict__["_line"] = (None, None, [])
        return whole(first, given)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__dict__["_stages"])

    def __getitem__(self, index: Any) -> Any:
        return self.__dict__["_stages"][index]


class _Stage:
    """One layer's stand-in: called in its place, and the layer itself in all other things."""

    def __init__(self, stages: Stages, index: int, layer: nn.Module) -> None:
        self._stages, self._index, self._layer = stages, index, layer

    def __call__(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        if x is None:
            x = kwargs.pop("hidden_states", None)
        return self._stages.take(self._index, x, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


KNOWN = {"shape", "dtype", "device", "ndim", "requires_grad", "layout", "is_cuda", "size", "dim"}


class _Token(Tensor):
    """Stands for hidden states between two layers that are computed later; no op may have it."""

    @staticmethod
    def __new__(cls, x: Tensor, unserved: Unserved) -> _Token:
        token: Any = Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype, device=x.device)
        token._unserved = unserved
        return token

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(getattr(func, "__self__", func), "__name__", "")
        if name in KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise _used(args)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise _used(args)


def _used(args: Any) -> UnservedError:
    reason = "the model uses hidden states between its layers"
    for each in args:
        if type(each) is _Token:
            return each.__dict__["_unserved"](reason)
    return UnservedError(reason)
