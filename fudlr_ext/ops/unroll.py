"""A step of an unrolled LoRA training: arguments and formulas are those of
`fudlr_ext.reference.unroll`. On the CPU alone, in float32 and float64; without derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_OPS = torch.ops.fudlr_unroll
adam_move: Any = _OPS.adam_move.default
adam_tangent: Any = _OPS.adam_tangent.default
adam_transposed: Any = _OPS.adam_transposed.default
lora_project: Any = _OPS.lora_project.default
lora_lift: Any = _OPS.lora_lift.default
lora_seen: Any = _OPS.lora_seen.default
lora_views: Any = _OPS.lora_views.default


def _like(*places: int) -> Any:
    """Fakes of results like the arguments at `places`."""
    return lambda *given: tuple(torch.empty_like(given[place]) for place in places)


def _columns(vectors: Tensor, factors: Tensor, table: Tensor, columns: int) -> Tensor:
    return vectors.new_empty(vectors.shape[0], columns)


for _name, _fake in {
    "adam_move": _like(0, 1, 2),
    "adam_tangent": _like(0, 1, 2),
    "adam_transposed": _like(0, 0, 1, 2),
    "lora_project": _columns,
    "lora_lift": _columns,
    "lora_seen": lambda shift, *rest: torch.empty_like(shift),
    "lora_views": lambda total, shifts, *rest: torch.empty_like(shifts),
}.items():
    torch.library.register_fake(f"fudlr_unroll::{_name}", _fake)
