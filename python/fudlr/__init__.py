"""Debias LoRA-tuned LLM recommenders: influence, mask, update, proof."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fudlr.common.errors import FudlrError
    from fudlr.config import DebiasConfig, RunConfig, load_config
    from fudlr.debias import Result, debias, forget
    from fudlr.output.results import write_result
    from fudlr.query import Answers, explain, query
    from fudlr.run import Run, adopt, load_run, train_run
    from fudlr.verify import Verification, verify, verify_result

__all__ = [
    "Answers",
    "DebiasConfig",
    "FudlrError",
    "Result",
    "Run",
    "RunConfig",
    "Verification",
    "adopt",
    "debias",
    "explain",
    "forget",
    "load_config",
    "load_run",
    "query",
    "train_run",
    "verify",
    "verify_result",
    "write_result",
]

MISSING = "fudlr needs {}, which comes with its extra: pip install 'fudlr-ext[recommender]'"
_MODULES = {
    "config": ("DebiasConfig", "RunConfig", "load_config"),
    "debias": ("Result", "debias", "forget"),
    "common.errors": ("FudlrError",),
    "output.results": ("write_result",),
    "query": ("Answers", "explain", "query"),
    "run": ("Run", "adopt", "load_run", "train_run"),
    "verify": ("Verification", "verify", "verify_result"),
}
_HOME = {name: f"fudlr.{module}" for module, names in _MODULES.items() for name in names}


class _Package(ModuleType):
    """Loads torch, transformers and peft, which take seconds, when a name that needs them is used.

    `fudlr --help`, a wrong option and `import fudlr` itself answer without them.
    """

    def __getattr__(self, name: str) -> object:
        if name == "__version__":
            return import_module("importlib.metadata").version("fudlr-ext")
        if name not in _HOME:
            raise AttributeError(f"module 'fudlr' has no attribute {name!r}")
        try:
            value: object = getattr(import_module(_HOME[name]), name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in ("fudlr", "fudlr_ext"):
                raise
            raise ImportError(MISSING.format(error.name), name=error.name) from error
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # An import binds `fudlr.debias` to the package of that name, and would hide the function.
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
