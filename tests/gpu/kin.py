"""Calls of the ops without a row in OP_CASES: the decoder's, attention's, and a backward."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr_ext.testing import OP_CASES, OpCase, as_tuple
from fudlr_ext.testing.catalogue import CatalogueShape

sys.path.insert(0, str(Path(__file__).parents[1] / "emu"))
import attention_cases
from backward_cases import BACKWARDS
from cases import FLOATS, Job, decoder_arguments, dtypes_of, kin_job
from decoder_cases import DECODER_SIZES, DECODER_WAYS

# Layers of Llama's 1B and 7B models, and what catalogues are like.
LARGE = {
    "rms_norm": (700, 4096, 3),
    "swiglu": (300, 11008, 3),
    "rotate": (700, 128, 3),
    "catalogue_mean": CatalogueShape(200, 20_000, 64, 4),
}


@dataclass(frozen=True)
class Kin:
    """One way of calling an op.

    make: Makes its arguments on the CPU, of a size and in a dtype. sizes: As `kin_job` has them.
    """

    library: str
    op: str
    way: str
    make: Callable[[Any, torch.dtype], tuple]
    small: Any
    large: Any
    dtypes: tuple[torch.dtype, ...]
    sizes: Callable[..., tuple[Tensor, ...]] | None = None

    def arguments(self) -> tuple:
        return self.make(self.small, torch.float32)

    def run(self, given: tuple) -> tuple[Tensor, ...]:
        """What it returns; of an op that works in place, a copy that it changed."""
        op = getattr(getattr(torch.ops, self.library), self.op).default
        if op._schema.returns:
            return as_tuple(op(*given))
        changed = given[0].clone()
        op(changed, *given[1:])
        return (changed,)

    def large_job(self, dtype: torch.dtype, where: str) -> Job:
        make = partial(self.make, self.large, dtype)
        label = f"{self.way} {self.large} {dtype}"
        return kin_job(self.library, self.op, label, make, sizes=self.sizes, where=where)

    def __str__(self) -> str:
        return f"{self.op}-{self.way}" if self.way else self.op


def _decoder(make: Callable[..., tuple], op: str, way: str, small: Any, large: Any) -> Kin:
    def arguments(size: Any, dtype: torch.dtype) -> tuple:
        return decoder_arguments(make, dtype, op, size, way)

    return Kin("fudlr_decoder", op, way, arguments, small, large, FLOATS)


def _backward(case: OpCase) -> Kin:
    op, make, sizes, _ = BACKWARDS[case.name]
    large = LARGE[case.name]
    return Kin("fudlr_grad", op, case.variant, partial(make, case), case.large, large,
               dtypes_of(case), sizes)  # fmt: skip


KIN = (
    *(
        _decoder(attention_cases.make, op, way, attention_cases.SIZES[-1], attention_cases.LARGE)
        for op, ways in attention_cases.WAYS.items()
        for way in ways
    ),
    *(
        _decoder(
            make, op, way, DECODER_SIZES[-1], next(LARGE[x] for x in LARGE if op.startswith(x))
        )
        for op, (make, *ways) in DECODER_WAYS.items()
        for way in ways
    ),
    *(_backward(case) for case in OP_CASES if case.name in BACKWARDS),
)
