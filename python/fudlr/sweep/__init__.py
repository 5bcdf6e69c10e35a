"""Many masks from one solve: λ's and budgets swept, predicted, measured, retrained."""

from fudlr.sweep.grid import Grid, Point
from fudlr.sweep.outputs import print_sweep, sweep_table, write_sweep
from fudlr.sweep.points import sweep_run
from fudlr.sweep.sweet_spot import rank

__all__ = ["Grid", "Point", "print_sweep", "rank", "sweep_run", "sweep_table", "write_sweep"]
