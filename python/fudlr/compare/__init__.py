"""Rivals of removal, on the same trained adapter."""

from fudlr.compare.comparison import RIVALS, compare_run
from fudlr.compare.outputs import pareto, print_comparison, write_comparison

__all__ = ["RIVALS", "compare_run", "pareto", "print_comparison", "write_comparison"]
