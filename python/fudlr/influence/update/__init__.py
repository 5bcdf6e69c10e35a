"""Updates that take masked samples out of an adapter: one step, the series, Newton's method."""

from fudlr.influence.update.kept import KeptLoss
from fudlr.influence.update.newton import NewtonStep, newton_update
from fudlr.influence.update.one_step import (
    LARGE_RESIDUAL,
    Update,
    finish,
    removal_update,
)
from fudlr.influence.update.series import series_update

__all__ = [
    "LARGE_RESIDUAL",
    "KeptLoss",
    "NewtonStep",
    "Update",
    "finish",
    "newton_update",
    "removal_update",
    "series_update",
]
