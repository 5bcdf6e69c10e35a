"""Per-sample LoRA gradients, their products and curvature products, compiled; needs torch alone.

`fudlr_ext.Engine(model)` works on an unmodified Hugging Face + peft model; `fudlr_ext.ops` has the
operations on tensors that it is made of.
"""

from __future__ import annotations

from fudlr_ext._library import load as _load

_C = _load()

from fudlr_ext import ops  # noqa: E402  the ops register their rules with the loaded library

__all__ = ["ops"]
