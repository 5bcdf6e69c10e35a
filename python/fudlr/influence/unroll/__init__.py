"""The unrolled update: a recorded training repeated without some of its samples."""

from fudlr.influence.unroll.exact import Exact
from fudlr.influence.unroll.rows import UnrolledRows
from fudlr.influence.unroll.training import StoredTraining
from fudlr.influence.unroll.unrolled import Unrolled

__all__ = ["Exact", "StoredTraining", "Unrolled", "UnrolledRows"]
