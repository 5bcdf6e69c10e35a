"""The table of rivals: one file and one line here make one."""

from fudlr.compare import (
    ascent,
    calibration,
    fine_tuning,
    inverse_popularity,
    item_side,
    llmeraser,
    most_popular,
    ours,
    popular_removal,
    random_removal,
    rerank_penalty,
    xquad,
)
from fudlr.compare.base import Rival

RIVALS: dict[str, Rival] = {
    rival.name: rival
    for rival in (
        ours.CLOSED_FORM,
        ours.RETRAINED,
        random_removal.RIVAL,
        popular_removal.RIVAL,
        inverse_popularity.RIVAL,
        item_side.RIVAL,
        ascent.RIVAL,
        llmeraser.RIVAL,
        fine_tuning.RIVAL,
        rerank_penalty.RIVAL,
        xquad.RIVAL,
        calibration.RIVAL,
        most_popular.RIVAL,
    )
}
"""In the order of tables; our own first."""
