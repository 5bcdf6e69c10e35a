"""A run: data, base model, start and trained adapter, in memory and as a folder."""

from fudlr.run.base import Base, make_base
from fudlr.run.folder import Run, load_run, read_data, train_run
from fudlr.run.live import adopt

__all__ = [
    "Base",
    "Run",
    "adopt",
    "load_run",
    "make_base",
    "read_data",
    "train_run",
]
