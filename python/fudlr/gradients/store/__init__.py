"""Per-sample gradients as rows: in memory, computed again batch by batch, or sketched on disk."""

from fudlr.gradients.store.errors import RecordingWarning, StoreError
from fudlr.gradients.store.facts import Facts
from fudlr.gradients.store.merging import joint_binding, merge
from fudlr.gradients.store.principal import PrincipalAccumulator
from fudlr.gradients.store.projection import Factors, Projection
from fudlr.gradients.store.random_projection import random_projection
from fudlr.gradients.store.reader import Store
from fudlr.gradients.store.recorder import Recorder
from fudlr.gradients.store.refreshing import refresh
from fudlr.gradients.store.rows import (
    CentredRows,
    GradientRows,
    MemoryRows,
    StreamedRows,
    record_rows,
)
from fudlr.gradients.store.sketch_rows import StoredRows
from fudlr.gradients.store.space import Space, sketch_space
from fudlr.gradients.store.spec import Binding, Stale, fingerprint, model_fingerprint
from fudlr.gradients.store.trainer import RecorderCallback
from fudlr.gradients.store.trainer_samples import Numbered
from fudlr.gradients.store.writer import StoreWriter

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
