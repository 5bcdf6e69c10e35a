"""The page in a real browser, at the width of a desk and of a phone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fudlr.report import ReportData, write_report
from matplotlib.image import imread

pytestmark = pytest.mark.browser

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=2000",
]


@pytest.fixture(scope="module")
def chromium() -> str:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None and os.environ.get("FUDLR_REQUIRE_BROWSER") == "1":
        pytest.fail("FUDLR_REQUIRE_BROWSER=1, and there is no chromium on the PATH")
    if path is None:
        pytest.skip("no chromium on the PATH; the page was not looked at in a browser")
    return path


def _browse(chromium: str, tmp_path: Path, page: Path, *flags: str) -> str:
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [chromium, *FLAGS, profile, *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.mark.parametrize(("width", "height"), [(1200, 3000), (500, 6000)])
def test_screenshot_is_full_of_ink(
    chromium: str, tmp_path: Path, data: ReportData, width: int, height: int
) -> None:
    page = write_report(tmp_path, data)
    shot = tmp_path / "shot.png"
    _browse(chromium, tmp_path, page, f"--screenshot={shot}", f"--window-size={width},{height}")
    pixels = imread(shot)[..., :3]
    assert pixels.shape[:2] == (height, width)
    inked = (pixels < 0.9).any(axis=-1)
    assert 0.02 < inked.mean() < 0.5
    # Text and drawings reach down the page, and colours of the plots are there.
    bands = np.array_split(inked, 10)
    assert all(band.any() for band in bands[:8])
    blue, orange = np.array([0x1D, 0x5F, 0xA3]) / 255, np.array([0xB8, 0x51, 0x0D]) / 255
    for colour in (blue, orange):
        assert (np.abs(pixels - colour).max(axis=-1) < 0.02).sum() > 1000


MEASURE = """<script>
addEventListener("load", () => {
  const root = document.documentElement;
  root.dataset.overflow = root.scrollWidth - root.clientWidth;
});
</script></body>"""


@pytest.mark.parametrize("width", [1200, 500])
def test_nothing_runs_out_of_the_page(
    chromium: str, tmp_path: Path, data: ReportData, width: int
) -> None:
    page = write_report(tmp_path, data)
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", MEASURE), encoding="utf-8")
    dom = _browse(chromium, tmp_path, page, "--dump-dom", f"--window-size={width},3000")
    assert 'data-overflow="0"' in dom


def test_rendered_text(chromium: str, tmp_path: Path, data: ReportData) -> None:
    dom = _browse(chromium, tmp_path, write_report(tmp_path, data), "--dump-dom")
    for words in ("Taking out 200 of 2,000", "Who and what causes the bias", "chosen budget"):
        assert words in dom
    for warning in data.summary["warnings"]:
        assert warning in dom
