"""What the ops share: fake kernels and vjps are registered, derivatives and devices checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import Library

from fudlr_ext.errors import EngineError


class _Reverse(Library):
    """Registers autograd kernels that refuse tangents, which torch's own would forget."""

    def impl(self, op_name: Any, fn: Any, dispatch_key: str = "", **options: Any) -> Any:
        def checked(keyset: Any, *arguments: Any, **named: Any) -> Any:
            for x in arguments:
                if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None:
                    raise EngineError(
                        f"a forward-mode derivative of {op_name} was asked for",
                        "the op has derivatives in reverse mode only",
                        "Use torch.func.vjp or backward(), or take it from fudlr_ext.reference",
                    )
            return fn(keyset, *arguments, **named)

        return super().impl(op_name, checked, dispatch_key, **options)  # type: ignore[no-untyped-call]


_LIBRARIES = {
    name: _Reverse(name, "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("fudlr", "fudlr_grad")
}


def register(
    op: str,
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup: Callable[..., None],
) -> None:
    """Register what `library::name` returns without numbers, and its vjp."""
    library = _LIBRARIES[op.partition("::")[0]]
    torch.library.register_fake(op, fake, lib=library)
    torch.library.register_autograd(op, backward, setup_context=setup, lib=library)


def register_last(op: str, fake: Callable[..., Any], what: str, remedy: str) -> None:
    """Register a backward pass, which is an op that has no derivative itself."""

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise EngineError(
            f"a gradient through the gradient of {what} was asked for",
            "it has first derivatives only",
            remedy,
        )

    register(op, fake, refuse, lambda ctx, inputs, output: None)


def same_device(op: str, **tensors: Tensor | None) -> None:
    """Raise where an argument is not on the device of the first one.

    The dispatcher picks a kernel by device before any kernel can look at its arguments, so this
    check cannot be the kernels'.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first, like = next(iter(given.items()))
    for name, tensor in given.items():
        if tensor.device != like.device:
            raise EngineError(
                f"{op}: all arguments must be on one device",
                f"{first} is on {like.device}, {name} on {tensor.device}",
                "Move them to the same device",
            )
