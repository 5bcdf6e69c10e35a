"""A call of every op on a GPU: those of OP_CASES, the decoder's, attention's, and a backward."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fudlr_ext.testing import OP_CASES, OpCase, Shape, as_tuple
from fudlr_ext.testing.catalogue import CatalogueShape
from fudlr_ext.testing.rows import RowShape

sys.path.insert(0, str(Path(__file__).parents[1] / "emu"))
import attention_cases
from backward_cases import BACKWARDS
from cases import FLOATS, Job, _agreement, decoder_arguments, dtypes_of, kin_job
from decoder_cases import DECODER_SIZES, DECODER_WAYS

# Layers of Llama's 1B and 7B models, and what stores and catalogues are like.
LARGE: dict[Any, Any] = {
    Shape: Shape((512, 100, 700, 3), 64, 2048, 8),
    RowShape: RowShape(3000, 4096, 8),
    CatalogueShape: CatalogueShape(200, 20_000, 64, 4),
    "rms_norm": (700, 4096, 3),
    "swiglu": (300, 11008, 3),
    "rotate": (700, 128, 3),
}
KINDS = ("rms_norm", "swiglu", "rotate")


@dataclass(frozen=True)
class Call:
    """One way of calling an op.

    make: Makes its arguments on the CPU, of a size and in a dtype. sizes: As `kin_job` has them.
    case: Its row of OP_CASES, where it has one.
    """

    library: str
    op: str
    way: str
    make: Callable[[Any, torch.dtype], tuple]
    small: Any
    large: Any
    dtypes: tuple[torch.dtype, ...]
    sizes: Callable[..., tuple[Tensor, ...]] | None = None
    case: OpCase | None = None

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
        if self.case is not None:
            return _agreement(self.case, label, make(), where)
        return kin_job(self.library, self.op, label, make, sizes=self.sizes, where=where)

    def __str__(self) -> str:
        return f"{self.op}-{self.way}" if self.way else self.op


def _decoder(make: Callable[..., tuple], op: str, way: str, small: Any, large: Any) -> Call:
    def arguments(size: Any, dtype: torch.dtype) -> tuple:
        return decoder_arguments(make, dtype, op, size, way)

    return Call("fudlr_decoder", op, way, arguments, small, large, FLOATS)


def _backward(case: OpCase) -> Call:
    op, make, sizes, _ = BACKWARDS[case.name]
    large = LARGE[type(case.large)]
    return Call("fudlr_grad", op, case.variant, partial(make, case), case.large, large,
               dtypes_of(case), sizes)  # fmt: skip


def _row(case: OpCase) -> Call:
    # Beside float64's order of a million close scores, another dtype's has changed places.
    dtypes = dtypes_of(case) if case.name != "catalogue_top" else (torch.float64,)
    return Call("fudlr", case.name, case.variant, case.make, case.large, LARGE[type(case.large)],
               dtypes, case=case)  # fmt: skip


CALLS = (
    *map(_row, OP_CASES),
    *(
        _decoder(attention_cases.make, op, way, attention_cases.SIZES[-1], attention_cases.LARGE)
        for op, ways in attention_cases.WAYS.items()
        for way in ways
    ),
    *(
        _decoder(
            make, op, way, DECODER_SIZES[-1], LARGE[next(x for x in KINDS if op.startswith(x))]
        )
        for op, (make, *ways) in DECODER_WAYS.items()
        for way in ways
    ),
    *(_backward(case) for case in OP_CASES if case.name in BACKWARDS),
)
