"""Quantised linear layers, which an adapter lies on and which are computed by their own code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fudlr_ext.unchanged import modules_of

PACKS = "support_avx512bf16_for_cpu"
"""bitsandbytes' name for whether a layer packs its weight for inference."""
BITSANDBYTES = {"Linear4bit", "Linear8bitLt"}


def quantised(base: Any) -> str:
    """Say how a linear layer holds its weight, where that is not as plain numbers; else nothing.

    bitsandbytes' layers are known by their class, torchao's by their weight's, and those of GPTQ
    and AWQ by the packed `qweight` that they hold.
    """
    for kind in type(base).__mro__:
        if kind.__name__ in BITSANDBYTES and kind is not nn.Linear:
            return f"bitsandbytes' {kind.__name__}"
    weight = getattr(base, "weight", None)
    if type(base) is nn.Linear and type(weight).__module__.startswith("torchao."):
        return f"torchao's {type(weight).__name__}"
    return f"{type(base).__name__}'s qweight" if hasattr(base, "qweight") else ""


@contextmanager
def unpacked(model: nn.Module) -> Iterator[None]:
    """Keep bitsandbytes for a while from packing 4-bit weights for CPUs with bfloat16; unpack them.

    A layer packs its weight where it is called in evaluation with an input that needs no gradient.
    From then on its kernel is one without a gradient, and what lies below gets a wrong one, without
    a word. Writing the layer's state unpacks it.
    """
    layers = [module for module in modules_of(model) if module.__dict__.get(PACKS)]
    try:
        for layer in layers:
            layer.__dict__[PACKS] = False
            state = getattr(layer.weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                layer.state_dict()
        yield
    finally:
        for layer in layers:
            layer.__dict__[PACKS] = True


def why_no_gradient(base: nn.Module, d_in: int, like: Tensor) -> str:
    """Say why no gradient comes back through a quantised layer; nothing where one does."""
    problem = ""
    for dtype in dict.fromkeys((like.dtype, torch.float16, torch.bfloat16, torch.float32)):
        x = torch.ones(1, 1, d_in, dtype=dtype, device=like.device, requires_grad=True)
        try:
            with unpacked(base), torch.inference_mode(False), torch.enable_grad():
                (gradient,) = torch.autograd.grad(base(x).sum(), x)
            return "" if bool(gradient.isfinite().all()) else "the gradient of its input is NaN"
        except Exception as error:  # whatever its kernels say of a dtype, or of a gradient
            problem = problem or str(error).strip().partition("\n")[0]
    return f"no gradient comes back to its input ({problem})"
