"""Every script is importable: a name that the library no longer has is found here."""

import json
from importlib import import_module
from pathlib import Path

import pytest
from fudlr.debias.expected import SHARES, expected

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = [*BENCHMARKS.glob("*.py"), *BENCHMARKS.glob("experiments/[a-z]*.py")]
NAMES = sorted(".".join(path.relative_to(BENCHMARKS).with_suffix("").parts) for path in SCRIPTS)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_imported(name):
    assert import_module(name).__doc__


def test_the_error_bar_is_the_measured_one():
    found = json.loads((BENCHMARKS / "results" / "error_bar.json").read_text())
    assert SHARES["unrolled"] == tuple(round(end, 2) for end in found["interval"])


def test_the_error_bar_turns_with_the_change_and_is_for_what_was_measured():
    before, (low, high) = {"arp_soft": 4.0, "gini_soft": 0.5}, SHARES["unrolled"]
    after = {"arp_soft": 3.0, "gini_soft": 0.6}
    found = expected("unrolled", 1.5, before, before, after)
    assert found["arp_soft"] == pytest.approx([-high, -low])
    assert found["gini_soft"] == pytest.approx([0.1 * low, 0.1 * high])
    assert expected("unrolled", 1.5, before, before, before) == {}
    assert expected("unrolled", 2.1, before, before, after) == {}
    assert expected("closed_form", None, before, before, after) == {}
