"""Per-sample LoRA gradients, their products and curvature products, compiled; needs torch alone.

`fudlr_ext.Engine(model)` works on an unmodified Hugging Face + peft model; `fudlr_ext.ops` has the
operations on tensors that it is made of.
"""

from __future__ import annotations

from fudlr_ext._library import load as _load

_C = _load()

# The ops register their rules with the loaded library.
from fudlr_ext import ops  # noqa: E402
from fudlr_ext.engine import Engine  # noqa: E402
from fudlr_ext.errors import (  # noqa: E402
    EngineError,
    NoGradientError,
    NonFiniteLossError,
    UnsupportedLayerError,
)
from fudlr_ext.labels import label_logits, label_loss, label_targets, states_at  # noqa: E402

__all__ = [
    "Engine",
    "EngineError",
    "NoGradientError",
    "NonFiniteLossError",
    "UnsupportedLayerError",
    "label_logits",
    "label_loss",
    "label_targets",
    "ops",
    "states_at",
]
