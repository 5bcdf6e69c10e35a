"""Per-sample gradients as rows: in memory, computed again batch by batch, or sketched on disk."""

from fudlr.store.errors import StoreError
from fudlr.store.merging import merge
from fudlr.store.principal import PrincipalAccumulator
from fudlr.store.projection import Factors, Projection
from fudlr.store.random_projection import random_projection
from fudlr.store.reader import Store
from fudlr.store.rows import GradientRows, MemoryRows, StreamedRows, record_rows
from fudlr.store.sketch_rows import StoredRows
from fudlr.store.spec import Binding, fingerprint
from fudlr.store.writer import StoreWriter

__all__ = [
    "Binding",
    "Factors",
    "GradientRows",
    "MemoryRows",
    "PrincipalAccumulator",
    "Projection",
    "Store",
    "StoreError",
    "StoreWriter",
    "StoredRows",
    "StreamedRows",
    "fingerprint",
    "merge",
    "random_projection",
    "record_rows",
]
