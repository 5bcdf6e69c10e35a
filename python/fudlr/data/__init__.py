"""Interactions, samples, splits and groups; readers of the forms that data come in.

Readers raise `DataError` for what is missing, damaged or does not match, with file and line, and
`UsageError` for a column that was named and is not there.
"""

from fudlr.data.build import build_interactions
from fudlr.data.candidates import candidate_items, candidates_of
from fudlr.data.check import check_data, print_check
from fudlr.data.fetch import fetch_ml100k, load_ml100k
from fudlr.data.groups import (
    groups_or_none,
    history_groups,
    item_groups,
    tail_items,
    user_groups,
)
from fudlr.data.interactions import DataWarning, Interactions, Samples, Split
from fudlr.data.quantise import make_codes
from fudlr.data.readers import READERS, read_data
from fudlr.data.splits import drawn, holdout_users, leave_last_out, make_split, time_split
from fudlr.data.synthetic import synthetic

__all__ = [
    "READERS",
    "DataWarning",
    "Interactions",
    "Samples",
    "Split",
    "build_interactions",
    "candidate_items",
    "candidates_of",
    "check_data",
    "drawn",
    "fetch_ml100k",
    "groups_or_none",
    "history_groups",
    "holdout_users",
    "item_groups",
    "leave_last_out",
    "load_ml100k",
    "make_codes",
    "make_split",
    "print_check",
    "read_data",
    "synthetic",
    "tail_items",
    "time_split",
    "user_groups",
]
