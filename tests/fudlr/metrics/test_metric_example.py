"""The example in examples/ runs, and shows what it says."""

import re
import runpy
from pathlib import Path

from fudlr.metrics import METRICS

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_metric.py"


def test_own_metric(capsys):
    before = dict(METRICS)
    try:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    finally:
        METRICS.clear()
        METRICS.update(before)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "blockbusters + 0.5*arp",
        "blockbusters",
        "blockbusters_soft",
        "arp",
    ]
    for line in lines:
        start, end = map(float, re.findall(r"[\d.]+", line.split(":")[1]))
        assert end < start
