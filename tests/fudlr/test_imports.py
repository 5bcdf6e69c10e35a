"""What starts quickly stays quick, and lazy names are what eager ones were."""

import subprocess
import sys

import pytest

LIGHT = """
import sys
import fudlr
import fudlr.cli
from fudlr import FudlrError, RunConfig, load_config
heavy = {"torch", "transformers", "peft", "matplotlib", "polars"} & set(sys.modules)
assert not heavy, heavy
import fudlr.debias
import fudlr.verify.case
from fudlr import debias, load_run, verify
assert "peft" in sys.modules
assert debias.__module__ == "fudlr.debias.steps" and fudlr.debias is debias
assert callable(fudlr.verify) and verify is fudlr.verify
assert set(fudlr.__all__) <= set(dir(fudlr))
"""


def test_heavy_libraries_wait_until_they_are_needed():
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    import fudlr

    assert all(getattr(fudlr, name) is not None for name in fudlr.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fudlr.nothing
    with pytest.raises(ImportError):
        from fudlr import nothing  # noqa: F401
