"""What starts quickly stays quick, and lazy names are what eager ones were."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LIGHT = """
import sys
import fudlr
import fudlr.cli
from fudlr import FudlrError, RunConfig, load_config
heavy = {"torch", "transformers", "peft", "matplotlib", "polars"} & set(sys.modules)
assert not heavy, heavy
"""
HELP = """
import sys
from fudlr.cli import main
sys.argv = ["fudlr", "--help"]
try:
    main()
except SystemExit as ended:
    assert ended.code == 0
heavy = {"torch", "numpy", "rich", "pydantic", "yaml", "tqdm", "importlib.metadata"}
heavy &= set(sys.modules)
assert not heavy, heavy
"""

ALONE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in LIBRARIES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
ENGINE = """
import torch
import fudlr_ext
left, right = torch.randn(6, 3), torch.randn(6, 2)
found = fudlr_ext.ops.sample_grads(left, right, torch.tensor([0, 2, 6]))
hand = torch.stack([left[:2].T @ right[:2], left[2:].T @ right[2:]])
assert torch.allclose(found, hand, atol=1e-5)
"""
COMMAND = """
import runpy
runpy.run_module("fudlr", run_name="__main__")
"""
NAME = """
import fudlr
try:
    fudlr.debias
except ImportError as error:
    print(error)
"""


def without_the_extra(code):
    """Run `code` where torch is installed, and of the extra's libraries none."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra = tomllib.loads(text)["project"]["optional-dependencies"]["recommender"]
    libraries = {
        "yaml" if name.startswith("pyyaml") else re.split(r"\W", name)[0] for name in extra
    }
    libraries -= {"jinja2"}  # torch itself requires it
    code = ALONE.replace("LIBRARIES", repr(libraries)) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_engine_needs_torch_alone():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert [re.split(r"\W", d)[0] for d in tomllib.loads(text)["project"]["dependencies"]] == [
        "torch"
    ]
    done = without_the_extra(ENGINE)
    assert done.returncode == 0, done.stderr


def test_without_the_extra_the_command_says_so_in_a_sentence():
    done = without_the_extra(COMMAND)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install 'fudlr-ext[recommender]'" in done.stderr
    assert "pip install 'fudlr-ext[recommender]'" in without_the_extra(NAME).stdout


@pytest.mark.parametrize("code", [LIGHT, HELP], ids=["import", "help"])
def test_heavy_libraries_wait_until_they_are_needed(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    """Functions, where modules of their name have been imported as well."""
    import fudlr
    import fudlr.debias
    import fudlr.verify.case

    assert fudlr.debias.__module__ == "fudlr.debias.steps"
    assert callable(fudlr.verify)
    assert set(fudlr.__all__) <= set(dir(fudlr))
    assert all(getattr(fudlr, name) is not None for name in fudlr.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fudlr.nothing
    with pytest.raises(ImportError):
        from fudlr import nothing  # noqa: F401
