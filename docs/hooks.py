"""What the site has beside docs/*.md: the README and others as pages, examples, API, notebooks."""

from __future__ import annotations

import json
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
EXAMPLES = {
    "examples/*.py": "python",
    "examples/distributed/*.slurm": "bash",
    "examples/distributed/*.yaml": "yaml",
}
"""Examples that have a page, and the language of each."""
# A page's own address (canonical) says where a site is served; it is not loaded.
FOREIGN = re.compile(
    r"""<(?:link(?! rel=.?canonical)|script|img|iframe|source)\b[^>]*?"""
    r"""(?:src|href)=["']?(?:https?:)?//"""
)


def places() -> dict[str, str]:
    """The page of every file that is one, by its path in the repository."""
    found = {}
    for top, pattern in (("docs", "*.md"), ("docs", "*.ipynb"), *((".", p) for p in EXAMPLES)):
        for path in sorted((ROOT / top).glob(f"**/{pattern}" if top == "docs" else pattern)):
            page = path.relative_to(ROOT / top).with_suffix(".md")
            found[path.relative_to(ROOT).as_posix()] = page.as_posix()
    return {**found, **ELSEWHERE}


PLACES = places()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show the version in the header, and list the pages that are made."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.site_name = f"{config.site_name} {project['version']}"
    made = {
        "API": [f"api/{package}.md" for package in public_names()],
        "Examples": [page for page in PLACES.values() if page.startswith("examples/")],
        "Notebooks": [page for page in PLACES.values() if page.startswith("notebooks/")],
    }
    config.nav += [{title: pages} for title, pages in made.items()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for path in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(path)
    for source, page in PLACES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        language = [told for form, told in EXAMPLES.items() if Path(source).match(form)]
        if language:
            text = f"# {Path(source).name}\n\n```{language[0]}\n{text}```\n"
        elif source.endswith(".ipynb"):
            text = notebook(json.loads(text))
        elif source not in ELSEWHERE:
            continue
        files.append(File.generated(config, page, content=text))
    for package, names in public_names().items():
        files.append(File.generated(config, f"api/{package}.md", content=api(package, names)))
    return files


def public_names() -> dict[str, list[str]]:
    """Package -> its public names; the one list of them."""
    text = (ROOT / "docs" / "api.yaml").read_text(encoding="utf-8")
    return yaml.load(text, yaml.BaseLoader)  # all strings: `Null` is one of the names


def api(package: str, names: list[str]) -> str:
    """A page of a package's docstring and those of its public names."""
    # Where a module has its function's name, the module would be documented: `fudlr.debias`.
    twice = {name: f"{name}.{name}" for name in names if (folder(package) / name).is_dir()}
    directives = "".join(f"::: {package}.{twice.get(name, name)}\n\n" for name in names)
    head = f"::: {package}\n    options:\n      members: false\n      show_root_heading: false\n\n"
    return f"# {package}\n\n{head}{directives}"


def folder(package: str) -> Path:
    """Where a package's source is."""
    top = ROOT if package.startswith("fudlr_ext") else ROOT / "python"
    return top / package.replace(".", "/")


def notebook(cells: dict[str, Any]) -> str:
    """An executed notebook as Markdown: its words, its code, and what was printed."""
    parts = []
    for cell in cells["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        said = "".join(_text(output) for output in cell["outputs"])
        if said:
            parts.append(f"```text\n{said.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _text(output: dict[str, Any]) -> str:
    return "".join(output.get("text") or output["data"]["text/plain"] + ["\n"])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links within the repository into links within the site."""
    here = page.file.src_uri
    source = next((source for source, place in PLACES.items() if place == here), here)

    def link(found: re.Match[str]) -> str:
        path, _, anchor = found[1].partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        target = PLACES.get(target, target.removeprefix("docs/"))
        if not path or ":" in path:
            return found[0]
        there = posixpath.relpath(target, posixpath.dirname(here) or ".")
        return f"]({there}{'#' if anchor else ''}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", link, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse what a reader's browser would load from another host."""
    if found := FOREIGN.search(output):
        raise PluginError(f"{page.file.src_uri} loads from another host: {found[0]}")
    if 'class="mermaid"' in output:
        raise PluginError(f"{page.file.src_uri}: the theme loads mermaid from another host")
    return output
