"""All arguments of an op lie on one device."""

from __future__ import annotations

from torch import Tensor

from fudlr_ext.errors import EngineError


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
