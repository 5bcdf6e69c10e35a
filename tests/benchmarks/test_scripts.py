"""Every script is importable: a name that the library no longer has is found here."""

from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = [*BENCHMARKS.glob("*.py"), *BENCHMARKS.glob("experiments/[a-z]*.py")]
NAMES = sorted(".".join(path.relative_to(BENCHMARKS).with_suffix("").parts) for path in SCRIPTS)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_imported(name):
    assert import_module(name).__doc__
