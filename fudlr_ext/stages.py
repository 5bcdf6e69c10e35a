"""Stand-ins for decoder layers in their model's own loop.

They hand a token from one to the next, which no op may touch, so that a loop that does more than
call one layer after the other is found out; the last of them has all layers computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class UnservedError(Exception):
    """A pass over fused layers cannot give what the model would: to be done again without them."""


Unserved = Callable[[str], UnservedError]
"""Makes the error for a reason, and notes that the pass is to be done again."""


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
