"""What a recording makes of samples' gradients: arguments and values are those of
`fudlr_ext.reference.record`. On the CPU alone; without derivatives.

`add_sketch` takes float32 and float64. It leaves out a sample's positions before the first and
behind the last whose left factor is not 0. `encode_rows` takes float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

add_sketch: Any = torch.ops.fudlr_record.add_sketch.default
encode_rows: Any = torch.ops.fudlr_record.encode_rows.default


def _encoded(rows: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows, dtype=torch.int8), rows.new_empty(
        len(rows), -(-rows.shape[1] // 128)
    )


torch.library.register_fake("fudlr_record::add_sketch", lambda *given: None)
torch.library.register_fake("fudlr_record::encode_rows", _encoded)
