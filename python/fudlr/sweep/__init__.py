"""Many masks from one solve: λ's and budgets swept, predicted, measured, retrained."""

from fudlr.sweep.grid import Grid, Point, parse_list, rank
from fudlr.sweep.outputs import print_sweep, sweep_table, write_sweep
from fudlr.sweep.points import sweep_run

__all__ = [
    "Grid",
    "Point",
    "parse_list",
    "print_sweep",
    "rank",
    "sweep_run",
    "sweep_table",
    "write_sweep",
]
