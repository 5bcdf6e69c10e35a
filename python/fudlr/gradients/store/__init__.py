"""Sketched per-sample gradients on disk: recorded during a training or in one scoring pass."""

from fudlr.common.digest import digest
from fudlr.common.errors import RecordingWarning, StoreError
from fudlr.gradients.store.bergson import BergsonIndex
from fudlr.gradients.store.exporting import export_store
from fudlr.gradients.store.manifest import Binding, Recipe, model_fingerprint
from fudlr.gradients.store.merging import joint_binding, merge
from fudlr.gradients.store.reader import Store
from fudlr.gradients.store.recorder import Recorder
from fudlr.gradients.store.stored import StoredRows
from fudlr.gradients.store.trainer import Numbered, RecorderCallback
from fudlr.gradients.store.writer import StoreWriter

__all__ = [
    "BergsonIndex",
    "Binding",
    "Numbered",
    "Recipe",
    "Recorder",
    "RecorderCallback",
    "RecordingWarning",
    "Store",
    "StoreError",
    "StoreWriter",
    "StoredRows",
    "digest",
    "export_store",
    "joint_binding",
    "merge",
    "model_fingerprint",
]
