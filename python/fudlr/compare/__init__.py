"""Rivals of the closed form, on the same trained adapter."""

from fudlr.compare.base import Point, Rival, Setting
from fudlr.compare.comparison import compare_run
from fudlr.compare.outputs import pareto, print_comparison, write_comparison
from fudlr.compare.table import RIVALS

__all__ = [
    "RIVALS",
    "Point",
    "Rival",
    "Setting",
    "compare_run",
    "pareto",
    "print_comparison",
    "write_comparison",
]
