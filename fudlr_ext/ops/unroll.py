"""A step of an unrolled LoRA training: arguments and formulas are those of
`fudlr_ext.reference.unroll`. On the CPU alone, in float32 and float64; without derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fudlr_ext.ops._autograd import register_without


def _like(*places: int) -> Any:
    """Fakes of results like the arguments at `places`."""
    return lambda *given: tuple(torch.empty_like(given[place]) for place in places)


def _columns(vectors: Tensor, factors: Tensor, table: Tensor, columns: int) -> Tensor:
    return vectors.new_empty(vectors.shape[0], columns)


def _first(shifts: Tensor, *rest: Tensor) -> Tensor:
    return torch.empty_like(shifts)


def _second(total: Tensor, shifts: Tensor, *rest: Tensor) -> Tensor:
    return torch.empty_like(shifts)


adam_move = register_without("fudlr_unroll::adam_move", _like(0, 1, 2))
adam_tangent = register_without("fudlr_unroll::adam_tangent", _like(0, 1, 2))
adam_transposed = register_without("fudlr_unroll::adam_transposed", _like(0, 0, 1, 2))
lora_project = register_without("fudlr_unroll::lora_project", _columns)
lora_lift = register_without("fudlr_unroll::lora_lift", _columns)
lora_seen = register_without("fudlr_unroll::lora_seen", _first)
lora_views = register_without("fudlr_unroll::lora_views", _second)
