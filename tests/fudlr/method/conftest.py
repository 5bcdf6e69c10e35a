"""Lets the tests of this folder import the bed."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def bed():
    from bed import bed

    return bed()
