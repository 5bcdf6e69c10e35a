"""Where the LoRA matrices lie in the flat vector, and which belong together."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal

Grain = Literal["matrix", "module"]


def matrix_slices(shapes: Mapping[str, tuple[int, int]]) -> dict[str, slice]:
    """The part of the flat vector of each matrix, in the order of `shapes` (`engine.shapes`)."""
    found, start = {}, 0
    for name, shape in shapes.items():
        found[name] = slice(start, start + prod(shape))
        start += prod(shape)
    return found


def block_slices(shapes: Mapping[str, tuple[int, int]], grain: Grain) -> list[slice]:
    """The diagonal blocks: a matrix each, or a module's A and B together."""
    if grain == "matrix":
        return list(matrix_slices(shapes).values())
    merged: dict[str, slice] = {}
    for name, part in matrix_slices(shapes).items():
        module = name.rsplit(".lora_", 1)[0]
        merged[module] = slice(merged[module].start if module in merged else part.start, part.stop)
    return list(merged.values())
