"""Masks, adapters and metrics for groups or sets of users, from one gradient pass and one solve."""

from fudlr.groups.outputs import print_grouped, write_grouped
from fudlr.groups.request import Grouped, One, debias_groups
from fudlr.groups.sets import UserSet, sets_of_column, sets_of_files

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
