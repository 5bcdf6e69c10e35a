"""The order of a sweep's points: the objective's fall, as far as the validation loss allows it.

Among the points whose validation loss rises by at most `max_loss_rise`, relative to θ*, the one
whose objective falls most is the sweet spot; equal ones by the fewer removals. Where none keeps to
that, the points follow by how little the loss rises. Both figures are of the validation prompts, so
that the test prompts' figures are not chosen by: the closed form's measured ones where every point
has them, else the predicted ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RULE = (
    "the lowest objective among points whose validation loss rises by at most {limit:.1%}, "
    "by {basis} figures of the validation prompts"
)


def basis(records: Sequence[Mapping[str, Any]]) -> str:
    """`measured` where every point is, else `predicted`."""
    return "measured" if all(record["measured"] for record in records) else "predicted"


def rank(records: Sequence[Mapping[str, Any]], max_loss_rise: float) -> list[int]:
    """Places of the points, the sweet spot first."""
    kind = basis(records)

    def order(place: int) -> tuple[bool, float, int]:
        record = records[place]
        figures = record[kind]
        over = figures["loss_rise"] > max_loss_rise
        first = figures["loss_rise"] if over else figures["objective"]
        return over, first, record["removed"]

    return sorted(range(len(records)), key=order)
