"""Debias LoRA-tuned LLM recommenders: influence, mask, closed-form update, proof."""

from fudlr.config import DebiasConfig, RunConfig, load_config
from fudlr.debias import Result, debias
from fudlr.errors import FudlrError
from fudlr.results import write_result
from fudlr.run import Run, load_run, train_run
from fudlr.verify import Verification, verify, verify_result

__all__ = [
    "DebiasConfig",
    "FudlrError",
    "Result",
    "Run",
    "RunConfig",
    "Verification",
    "debias",
    "load_config",
    "load_run",
    "train_run",
    "verify",
    "verify_result",
    "write_result",
]
