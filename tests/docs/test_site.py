"""The documentation as a site: built strictly, and what would make a bad one is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml

mkdocs = pytest.importorskip("mkdocs", reason="the site is built with the extra `docs`")
from mkdocs.commands.build import build  # noqa: E402
from mkdocs.config import load_config  # noqa: E402
from mkdocs.exceptions import Abort, PluginError  # noqa: E402

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "mkdocs.yml")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.chdir(ROOT)


def test_the_site_is_whole(tmp_path):
    config = load_config(CONFIG, site_dir=str(tmp_path), strict=True)
    build(config)
    for page in ("index", "install/index", "examples/own_adapter/index", "search/search_index"):
        assert list(tmp_path.glob(f"{page}.*")), page
    public = yaml.load((ROOT / "docs" / "api.yaml").read_text(encoding="utf-8"), yaml.BaseLoader)
    for package, names in public.items():
        page = (tmp_path / "api" / package / "index.html").read_text(encoding="utf-8")
        lacking = [name for name in names if f">{name}<" not in page.replace("\n", "")]
        assert not lacking, package


@pytest.fixture
def build_page(tmp_path):
    """Builds a site of one page, strictly."""

    def made(text: str) -> None:
        docs = tmp_path / "docs"
        docs.mkdir()
        (docs / "page.md").write_text(f"# Page\n\n{text}\n", encoding="utf-8")
        config = load_config(
            CONFIG,
            docs_dir=str(docs),
            site_dir=str(tmp_path / "site"),
            strict=True,
            nav=["page.md"],
        )
        hooks = config.hooks["docs/hooks.py"]
        hooks.PLACES, hooks.public_names = {}, dict
        build(config)

    return made


def test_a_sound_page_is_built(build_page):
    build_page("[here](page.md#page), [there](https://example.org)")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[gone](nowhere.md)", "nowhere.md"),
        ("[gone](page.md#nowhere)", "there is no such anchor"),
        ("::: fudlr.nowhere", "fudlr.nowhere could not be found"),
        ("![picture](https://example.org/a.png)", "loads from another host"),
    ],
)
def test_what_is_broken_ends_the_build(build_page, caplog, line, said):
    with caplog.at_level(logging.WARNING), pytest.raises((Abort, PluginError)) as stopped:
        build_page(line)
    assert said in f"{caplog.text} {stopped.value}"
