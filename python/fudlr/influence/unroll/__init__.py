"""The unrolled update: a recorded training repeated without some of its samples."""

from fudlr.influence.unroll.rows import UnrolledRows
from fudlr.influence.unroll.unrolled import StoredTraining, Unrolled

__all__ = ["StoredTraining", "Unrolled", "UnrolledRows"]
