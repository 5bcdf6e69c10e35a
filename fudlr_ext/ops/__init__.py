"""The native ops, one module each; `OPS` is their table."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fudlr_ext.ops.grad_sum import grad_sum
from fudlr_ext.ops.sample_dots import sample_dots
from fudlr_ext.ops.sample_grads import sample_grads
from fudlr_ext.ops.sample_sketch import sample_sketch

OPS: dict[str, Callable[..., Tensor]] = {
    function.__name__: function for function in (sample_grads, sample_dots, grad_sum, sample_sketch)
}

__all__ = ["OPS", "grad_sum", "sample_dots", "sample_grads", "sample_sketch"]
