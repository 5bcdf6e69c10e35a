"""The page in a real browser, at the width of a desk and of a phone, folded and unfolded."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fudlr.report import ReportData, write_report

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
    "--virtual-time-budget=4000",
]
PHONE, DESK = 390, 1200
OPEN = "<script>for (const each of document.querySelectorAll('details')) each.open = true</script>"
MEASURE = """<script>
addEventListener("load", () => {
  const root = document.documentElement;
  const small = [...document.querySelectorAll("summary")].filter(
    each => each.getBoundingClientRect().height < 24).length;
  parent.postMessage({overflow: root.scrollWidth - root.clientWidth, height: root.scrollHeight,
                      small}, "*");
});
</script>"""
FRAME = """<html><body><script>
addEventListener("message", event => { document.body.dataset.found = JSON.stringify(event.data) });
</script><iframe src="page.html" style="border:0;width:WIDTHpx;height:900px"></iframe>
</body></html>"""
AXE = """<script>
axe.run(document).then(found => {
  document.body.dataset.found = JSON.stringify(found.violations.map(
    each => [each.id, each.nodes.map(node => node.html.slice(0, 120))]));
});
</script>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None and os.environ.get("FUDLR_REQUIRE_BROWSER") == "1":
        pytest.fail("FUDLR_REQUIRE_BROWSER=1, and there is no chromium on the PATH")
    if path is None:
        pytest.skip("no chromium on the PATH; the page was not looked at in a browser")
    return path


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, from npm."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("axe")
    if npm is None:
        pytest.skip("no npm on the PATH to fetch axe-core with")
    command = [npm, "pack", "--silent", "axe-core@4"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    packed = next(iter(folder.glob("axe-core-*.tgz")), None)
    if packed is None:
        pytest.skip(f"axe-core could not be fetched: {done.stderr.strip()[:200]}")
    with tarfile.open(packed) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode("utf-8")


def _browse(chromium: str, tmp_path: Path, page: Path) -> str:
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [chromium, *FLAGS, profile, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout


def _with(page: Path, *scripts: str) -> Path:
    """The page with scripts at its end, beside it."""
    text = page.read_text(encoding="utf-8").replace("</body>", "".join(scripts) + "</body>")
    copy = page.with_name("page.html")
    copy.write_text(text, encoding="utf-8")
    return copy


def _found(dom: str) -> Any:
    match = re.search(r'<body[^>]* data-found="([^"]*)"', dom)
    assert match, "the page's script left nothing"
    return json.loads(html.unescape(match[1]))


def _measured(chromium: str, tmp_path: Path, page: Path, width: int) -> dict[str, int]:
    """Sizes of the page in a frame: a window has a least width, a frame has none."""
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    found: dict[str, int] = _found(_browse(chromium, tmp_path, frame))
    return found


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_nothing_runs_out_of_the_page(
    chromium: str, tmp_path: Path, data: ReportData, width: int
) -> None:
    page = write_report(tmp_path, data)
    folded = _measured(chromium, tmp_path, _with(page, MEASURE), width)
    unfolded = _measured(chromium, tmp_path, _with(page, OPEN, MEASURE), width)
    assert folded["overflow"] == unfolded["overflow"] == 0
    # Folded it is two screens of a desk, or three of a phone; all there is takes many more.
    assert folded["height"] < 2000 < unfolded["height"]
    assert folded["small"] == 0  # what is tapped is high enough for a finger


def test_axe_finds_no_violation(chromium: str, axe: str, tmp_path: Path, data: ReportData) -> None:
    page = write_report(tmp_path, data)
    for scripts in ((), (OPEN,)):  # folded, and unfolded
        made = _with(page, *scripts, f"<script>{axe}</script>", AXE)
        assert _found(_browse(chromium, tmp_path, made)) == []
    page.write_text(page.read_text().replace('<html lang="en">', "<html>"))
    made = _with(page, f"<script>{axe}</script>", AXE)
    assert "html-has-lang" in str(_found(_browse(chromium, tmp_path, made)))
