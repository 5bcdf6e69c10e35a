"""Questions to a run about single outputs: which training samples raised and lowered them."""

from fudlr.query.answers import Answers, explain, query
from fudlr.query.outputs import answer_tables, check_answers, print_answers, write_answers
from fudlr.query.prompts import read_prompts

__all__ = [
    "Answers",
    "answer_tables",
    "check_answers",
    "explain",
    "print_answers",
    "query",
    "read_prompts",
    "write_answers",
]
