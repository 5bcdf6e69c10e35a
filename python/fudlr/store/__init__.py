"""Per-sample gradients as rows: in memory, computed again batch by batch, or sketched on disk."""

from fudlr.store.errors import RecordingWarning, StoreError
from fudlr.store.facts import Facts
from fudlr.store.merging import joint_binding, merge
from fudlr.store.principal import PrincipalAccumulator
from fudlr.store.projection import Factors, Projection
from fudlr.store.random_projection import random_projection
from fudlr.store.reader import Store
from fudlr.store.recorder import Recorder
from fudlr.store.refreshing import refresh
from fudlr.store.rows import CentredRows, GradientRows, MemoryRows, StreamedRows, record_rows
from fudlr.store.sketch_rows import StoredRows
from fudlr.store.space import Space, sketch_space
from fudlr.store.spec import Binding, Stale, fingerprint, model_fingerprint
from fudlr.store.trainer import RecorderCallback
from fudlr.store.trainer_samples import Numbered
from fudlr.store.writer import StoreWriter

__all__ = [
    "Binding",
    "CentredRows",
    "Factors",
    "Facts",
    "GradientRows",
    "MemoryRows",
    "Numbered",
    "PrincipalAccumulator",
    "Projection",
    "Recorder",
    "RecorderCallback",
    "RecordingWarning",
    "Space",
    "Stale",
    "Store",
    "StoreError",
    "StoreWriter",
    "StoredRows",
    "StreamedRows",
    "fingerprint",
    "joint_binding",
    "merge",
    "model_fingerprint",
    "random_projection",
    "record_rows",
    "refresh",
    "sketch_space",
]
