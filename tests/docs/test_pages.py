"""README and docs: commands parse, files and links exist, Python blocks run on a tiny run."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import figures
import fudlr
import pages
import pytest
import typer
from fudlr.cli import app
from fudlr.config import RunConfig, field_names, merge

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TREES = ("python", "fudlr_ext", "csrc", "benchmarks", "examples", "tests", "findings")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def blocks(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [body for kind, body in BLOCK.findall(text) if kind == language]


def commands(path: Path) -> list[str]:
    """Lines of the shell blocks, continued ones joined, comments and [optional] parts opened."""
    text = "\n".join(blocks(path, "")).replace("\\\n", " ")
    lines = (re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines())
    return [re.sub(r"[\[\]…]", "", line) if line.startswith("fudlr") else line for line in lines]


WORDS = [(page, line) for page in PAGES for line in commands(page) if line]


@pytest.mark.parametrize(("page", "line"), WORDS, ids=[line[:50] for _, line in WORDS])
def test_a_command_is_one_that_can_be_given(page, line):
    words = shlex.split(line)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[0] in ("fudlr", "torchrun", "accelerate"):
        parsed(words[words.index("fudlr") + 1 :])
    elif words[0] == "python" and words[1] != "-m":
        assert (ROOT / words[1]).is_file(), line
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", makefile, re.M), line
    else:
        assert words[0] in ("pip", "python", "docker"), f"{page.name}: {line}"


def parsed(words: list[str]) -> None:
    """Parse as the command line does, without doing it."""
    command, context = typer.main.get_command(app), None
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"fudlr has no command {name}"
        command = command.commands[name]
    context = command.make_context(command.name, words)
    for setting in context.params.get("settings") or ():
        assert setting.partition("=")[0] in field_names(), setting


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in slugs, f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_sources_that_are_named_are_there(page):
    """Those that are gone are named with the commit that has them."""
    text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    there = [path.as_posix() for top in TREES for path in (ROOT / top).rglob("*.*")]
    for name, after in re.findall(r"`([\w/-]+/[\w-]+\.(?:py|cpp|cu|h))`([^.]{0,30})", text):
        found = any(path.endswith(f"/{name}") for path in there)
        assert found or "at commit" in after, f"{page.name}: {name}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    fudlr.train_run(merge(RunConfig(), pages.TINY), folder / "run")
    return folder


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda path: path.name)
def test_python_blocks_run(page, tiny, tmp_path, monkeypatch):
    """One after the other, in the names of the page's prelude (pages.py) and of those before."""
    monkeypatch.setenv("FUDLR_QUIET", "1")
    own = tmp_path / "page"
    shutil.copytree(tiny, own)
    monkeypatch.chdir(own)
    names = pages.prelude(page.stem, own)
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


def test_the_readme_quotes_the_result_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| (arp|hellinger) ", line)]
    assert len(rows) == 4
    assert set(rows) <= set(figures.loop())
    costs = [row.split(" | ")[1:3] for row in figures.record_once()]
    first, further = ([float(c[i].rstrip("%")) for c in costs] for i in (0, 1))
    said = f"{min(first)} to {max(first)}% of the training's CPU time with its recording"
    assert " ".join(said.split()) in " ".join(text.split())
    assert f"{min(further)} to {max(further)}% (`benchmarks" in " ".join(text.split())
    speeds = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:] for row in figures.scoring()}
    for name in ("fudlr_ext", "bergson 2.5.1", "dattri-llm 0.1.0", "opacus 1.6.0",
                 "kronfluence 1.0.1, identity"):  # fmt: skip
        wide, narrow = speeds[name][0], speeds[name][2].rstrip(" |")
        assert f"{wide} / {narrow}" in text, name
