"""A run: data, base model, start and trained adapter, in memory and as a folder."""

from fudlr.run.base import Base, make_base
from fudlr.run.folder import Run, load_run, read_data, train_run, versions

__all__ = [
    "Base",
    "Run",
    "load_run",
    "make_base",
    "read_data",
    "train_run",
    "versions",
]
