"""Stores of adapters that are trained already: recorded, refreshed, and added to."""

from fudlr.record.later import append_run, later_run
from fudlr.record.refresh import Refreshed, refresh_run
from fudlr.record.scoring import record_run

__all__ = ["Refreshed", "append_run", "later_run", "record_run", "refresh_run"]
