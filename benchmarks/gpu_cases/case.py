"""What a row of gpu.py is: an op on one size in one dtype, beside other ways to the same answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

Way = Callable[[], Any]
"""Does the work, and returns a tensor or a tuple of tensors; None in it where a way has no such."""

OURS, PLAIN, TRUTH = "ours", "plain", "truth"

HALVES = (torch.bfloat16, torch.float16)


class Ways(NamedTuple):
    """The ways, on the same inputs.

    timed: "ours", "plain" and others. checked: What is compared, where it is not what is timed; a
    "truth" among them, where "plain" is none.
    """

    timed: dict[str, Way]
    checked: dict[str, Way]

    @property
    def compared(self) -> dict[str, Way]:
        return {**self.timed, **self.checked}


class Work(NamedTuple):
    """What must be moved and done, once each, and the formula that says so."""

    bytes: int
    operations: int
    formula: str


@dataclass(frozen=True)
class Case:
    """A row.

    Args:
        op: What is done.
        size: A named tuple; its `name` is what people read.
        dtype: Of what is read most of.
        build: Makes inputs on a device, and the ways on them.
        work: What must be moved and done.
        tolerance: The largest relative difference of ours from the truth; None: rounding's in
            float32 sums.
        cpu_refuses: Why the CPU takes no such dtype.
    """

    op: str
    size: Any
    dtype: torch.dtype
    build: Callable[[str], Ways]
    work: Work
    tolerance: float = 1e-4
    cpu_refuses: str = field(default="", kw_only=True)

    @property
    def rival_tolerance(self) -> float:
        """Of ways that may round as they go, or add a million numbers one after the other."""
        return 3e-2 if self.dtype in HALVES else 5e-3

    @property
    def shape(self) -> dict[str, Any]:
        """The size in numbers."""
        return {key: value for key, value in self.size._asdict().items() if key != "name"}

    def __str__(self) -> str:
        return f"{self.op}, {self.size.name}, {str(self.dtype).removeprefix('torch.')}"


def ways(timed: dict[str, Way], checked: dict[str, Way] | None = None) -> Ways:
    """With nothing else to compare unless it is said."""
    return Ways(timed, checked or {})


def normal(device: str) -> Callable[..., Tensor]:
    """Normal numbers of a size, float32, made on the device; the same in every run."""
    generator = torch.Generator(device).manual_seed(0)
    return lambda *size: torch.randn(*size, generator=generator, device=device)
