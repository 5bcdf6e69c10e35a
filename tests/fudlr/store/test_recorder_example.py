"""The example of a loop of one's own runs, and its unrolled update does what retraining does."""

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[3] / "examples" / "record_in_your_loop.py"


def test_record_in_your_loop(tmp_path, capsys):
    found = runpy.run_path(str(EXAMPLE))["main"](tmp_path)
    change = {name: value - found["trained"] for name, value in found.items()}
    # -.077, -.070 retrained and -.066 predicted.
    assert change["unrolled"] < -0.02
    assert 0.7 < change["unrolled"] / change["retrained without"] < 1.5
    assert 0.7 < change["unrolled"] / change["predicted without"] < 1.6
    assert found["hits among the removed"] > 0.85
    said = capsys.readouterr().out
    assert "51 of 512 samples removed" in said
    for name, value in found.items():
        assert f"{name}: {value:.3f}" in said
