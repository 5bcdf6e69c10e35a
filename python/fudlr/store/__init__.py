"""Per-sample gradients as rows: in memory, or computed again batch by batch."""

from fudlr.store.rows import GradientRows, MemoryRows, StreamedRows, record_rows

__all__ = ["GradientRows", "MemoryRows", "StreamedRows", "record_rows"]
