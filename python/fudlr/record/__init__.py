"""Stores of adapters that are trained already: recorded, and added to."""

from fudlr.record.later import append_run, later_run
from fudlr.record.scoring import record_run

__all__ = ["append_run", "later_run", "record_run"]
