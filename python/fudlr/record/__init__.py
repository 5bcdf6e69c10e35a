"""Stores of adapters that are trained already: recorded, refreshed, and added to."""

from fudlr.record.refresh import Refreshed, refresh_run
from fudlr.record.scoring import record_run

__all__ = ["Refreshed", "record_run", "refresh_run"]
