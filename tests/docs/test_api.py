"""docs/api.yaml lists the public names once: they are there, documented, and all that docs use."""

from __future__ import annotations

import ast
import json
import re
from importlib import import_module
from pathlib import Path

import fudlr
import pytest
import yaml

import fudlr_ext

ROOT = Path(__file__).parents[2]
PUBLIC: dict[str, list[str]] = yaml.load(
    (ROOT / "docs" / "api.yaml").read_text(encoding="utf-8"), yaml.BaseLoader
)
NAMES = [(package, name) for package, names in PUBLIC.items() for name in names]
SHOWN = [
    *sorted((ROOT / "examples").glob("*.py")),
    *sorted((ROOT / "docs").rglob("*.ipynb")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "README.md",
]


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_a_public_name_is_there_and_documented(package, name):
    module = import_module(package)
    value = getattr(module, name)
    assert name in getattr(module, "__all__", [name]), f"{package}.__all__ lacks {name}"
    if callable(value):
        assert (value.__doc__ or "").strip()
        assert not value.__doc__.startswith(f"{name}("), "a dataclass without a docstring"


def test_the_top_of_both_packages_is_public_as_a_whole():
    assert sorted(fudlr.__all__) == sorted(PUBLIC["fudlr"])
    assert sorted(fudlr_ext.__all__) == sorted([*PUBLIC["fudlr_ext"], "ops"])


def test_every_name_of_the_method_is_typed_for_users():
    client = (Path(__file__).parent / "typed_client.py").read_text(encoding="utf-8")
    assert not [name for name in fudlr.__all__ if f"fudlr.{name}" not in client]


def imported(source: str) -> set[tuple[str, str]]:
    """What a source takes from either package: (package, name)."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return {
        (node.module, alias.name)
        for node in nodes
        if node.module and node.module.partition(".")[0] in ("fudlr", "fudlr_ext")
        for alias in node.names
    }


def python(path: Path) -> str:
    """All Python of an example, of a notebook's cells, or of a page's blocks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
        return re.sub(r"^[!%].*$", "", text, flags=re.M)
    return text


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.name)
def test_what_is_shown_to_users_is_public(path):
    assert imported(python(path)) <= set(NAMES)
