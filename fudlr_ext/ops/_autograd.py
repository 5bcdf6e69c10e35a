"""What the ops share: fake kernels and vjps are registered, derivatives and devices checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import Library

from fudlr_ext import _C
from fudlr_ext.errors import EngineError


class _Reverse(Library):
    """Registers autograd kernels that refuse tangents, which torch's own would forget.

    They also raise what the library's kernels throw as what it is: torch 2.15 has one type for all.
    """

    def impl(self, op_name: Any, fn: Any, dispatch_key: str = "", **options: Any) -> Any:
        def checked(keyset: Any, *arguments: Any, **named: Any) -> Any:
            for x in arguments if forward_ad._current_level >= 0 else ():
                if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None:
                    raise EngineError(
                        f"a forward-mode derivative of {op_name} was asked for",
                        "the op has derivatives in reverse mode only",
                        "Use torch.func.vjp or backward(), or take it from fudlr_ext.reference",
                    )
            try:
                return fn(keyset, *arguments, **named)
            except RuntimeError as error:
                kind = _C.error_type(str(error))
                if type(error) is not RuntimeError or kind is RuntimeError:
                    raise
                raise kind(str(error)) from None

        return super().impl(op_name, checked, dispatch_key, **options)  # type: ignore[no-untyped-call]


# In its `with`, ops are called without a look at derivatives, which takes longer than a small op.
below_autograd = torch._C._AutoDispatchBelowAutograd


_LIBRARIES = {
    name: _Reverse(name, "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("fudlr", "fudlr_grad", "fudlr_decoder", "fudlr_unroll", "fudlr_record")
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


def register_without(
    op: str, fake: Callable[..., Any], changed: int | None = None
) -> Callable[..., Any]:
    """Register what an op returns without numbers, and that it has no derivative; return the op.

    Args:
        op: `library::name`.
        fake: Takes what the op takes.
        changed: Which argument the op changes in place, for autograd to know of.
    """
    library, _, name = op.partition("::")
    overload = getattr(getattr(torch.ops, library), name).default

    def refuse(keyset: Any, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            raise EngineError(
                f"the derivative for {op} was asked for",
                "the op has none",
                "Call it on .detach()ed tensors, or under torch.no_grad()",
            )
        with below_autograd():
            result = overload.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)
        if changed is not None:
            torch.autograd.graph.increment_version(arguments[changed])
        return result

    torch.library.register_fake(op, fake, lib=_LIBRARIES[library])
    _LIBRARIES[library].impl(name, refuse, "Autograd", with_keyset=True)

    def called(*arguments: Any) -> Any:
        derived = torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)
        recorded = changed is not None and torch.is_grad_enabled()
        if derived or recorded or forward_ad._current_level >= 0:
            return overload(*arguments)
        with below_autograd():
            found = overload(*arguments)
        if changed is not None:
            torch.autograd.graph.increment_version(arguments[changed])
        return found

    return called


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
