"""Loads the compiled library, and says why where it cannot be."""

from __future__ import annotations

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch

OLDEST = (2, 10)
"""The first release of torch whose stable C ABI has all that the library calls."""

FILE = Path(__file__).with_name("_C.abi3.so")
INSTALL = "Run `pip install .` in the source folder, or install the wheel"


def load() -> ModuleType:
    """Return `fudlr_ext._C`, which serves every torch since `OLDEST`."""
    check_torch(torch.__version__)
    # By its own name: one that an earlier version left for this Python alone would come before it.
    found = spec_from_file_location("fudlr_ext._C", FILE)
    if found is None or found.loader is None or not FILE.exists():
        raise ImportError(f"fudlr_ext was imported: its compiled library is missing. {INSTALL}.")
    try:
        library = module_from_spec(found)
        found.loader.exec_module(library)
    except ImportError as error:
        raise ImportError(
            f"fudlr_ext was imported: its compiled library does not load with torch "
            f"{torch.__version__} ({error}). {INSTALL} made for this machine."
        ) from error
    sys.modules["fudlr_ext._C"] = library
    try:
        library.isa()  # reads FUDLR_ISA: a wrong one is said here, not at the first product
    except ValueError as error:
        raise ImportError(str(error)) from error
    return library


def check_torch(found: str) -> None:
    """Raise ImportError where torch is older than the library can do with."""
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers and tuple(map(int, numbers.groups())) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(
            f"fudlr_ext was imported with torch {found}: it needs torch {oldest} or later. Run "
            f"`pip install 'torch>={oldest}'`."
        )
