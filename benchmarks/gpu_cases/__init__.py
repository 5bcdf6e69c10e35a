"""The rows of gpu.py: a family of ops is one file and one line here.

A family is a module with

    SIZES        what it is measured on: named tuples, each with a `name`
    small(size)  the same, small enough for a test on a CPU
    cases(size)  its rows on a size
"""

from collections.abc import Iterator
from types import ModuleType

from gpu_cases import attention, catalogues, decoder, rows, samples
from gpu_cases.case import Case

FAMILIES: dict[str, ModuleType] = {
    "rows": rows,
    "catalogues": catalogues,
    "attention": attention,
    "decoder": decoder,
    "samples": samples,
}
"""In the order of the run."""


def cases(family: str, small: bool = False) -> Iterator[Case]:
    """All rows of a family, or each of them in small."""
    module = FAMILIES[family]
    for size in module.SIZES:
        yield from module.cases(module.small(size) if small else size)
