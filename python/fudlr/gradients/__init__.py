"""Per-sample gradients: in memory, streamed, stored; and the gradients of metrics."""

from fudlr.gradients.matrix import GradientMatrix, MemoryRows, StreamedRows, record_rows
from fudlr.gradients.projection import PrincipalAccumulator, Projection
from fudlr.gradients.space import Space

__all__ = [
    "GradientMatrix",
    "MemoryRows",
    "PrincipalAccumulator",
    "Projection",
    "Space",
    "StreamedRows",
    "record_rows",
]
