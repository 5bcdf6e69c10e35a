"""Masks, adapters and metrics for groups or sets of users, from one gradient pass and one solve."""

from fudlr.grouped.outputs import print_grouped, write_grouped
from fudlr.grouped.request import Grouped, One, debias_groups
from fudlr.grouped.sets import UserSet, sets_of_column, sets_of_files

__all__ = [
    "Grouped",
    "One",
    "UserSet",
    "debias_groups",
    "print_grouped",
    "sets_of_column",
    "sets_of_files",
    "write_grouped",
]
