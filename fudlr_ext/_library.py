"""Loads the compiled library, and says why where it cannot be."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

REBUILD = "Run `pip install --no-build-isolation .` in the source folder, or install the wheel"


def load() -> ModuleType:
    """Return `fudlr_ext._C` after checking that it fits the torch that is imported."""
    try:
        library = importlib.import_module("fudlr_ext._C")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"fudlr_ext was imported: its compiled library is missing. {REBUILD} made for this "
            "Python."
        ) from error
    except ImportError as error:
        raise ImportError(
            f"fudlr_ext was imported: its compiled library does not load with torch "
            f"{torch.__version__} ({error}). {REBUILD} made for this torch."
        ) from error
    check_versions(library.torch_version, torch.__version__)
    try:
        library.isa()  # reads FUDLR_ISA: a wrong one is said here, not at the first product
    except ValueError as error:
        raise ImportError(str(error)) from error
    return library


def check_versions(built: str, found: str) -> None:
    """Raise ImportError where the library was built against another torch than `found`.

    The part after a plus sign (cpu, cu130) names the same release's build and is not compared.
    """
    if built.partition("+")[0] != found.partition("+")[0]:
        raise ImportError(
            f"fudlr_ext was imported with torch {found}: its compiled library was built against "
            f"torch {built}. {REBUILD} made for this torch, or install torch=={built}."
        )
