"""Imports run downwards only, as docs/architecture.md has it: the table there is what is tested."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
METHOD = ROOT / "python" / "fudlr"
ENGINE = ROOT / "fudlr_ext"


def table() -> dict[str, int]:
    """Level of every module and folder that the table names."""
    levels: dict[str, int] = {}
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        if row := re.match(r"\| (\d+) \| ([^|]+) \|", line):
            for name in re.findall(r"`(\w+)`", row[2]):
                assert name not in levels, f"{name} stands on two levels"
                levels[name] = int(row[1])
    return {name: level for name, level in levels.items() if level > 0}


LEVELS = table()


def imports(path: Path, root: Path) -> list[tuple[int, str]]:
    """(line, dotted module) of every import, inside functions too; relative ones made absolute."""
    package = [root.name, *path.relative_to(root).parent.parts]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from fudlr import lora` names the module in what it imports.
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def part(path: Path) -> str:
    """The name under which the table knows a file: its folder, or the module itself."""
    return path.relative_to(METHOD).parts[0].removesuffix(".py")


SOURCES = sorted(path for path in METHOD.rglob("*.py") if part(path) != "__init__")


def offences(path: Path) -> list[str]:
    own = part(path)
    wrong = []
    for line, module in imports(path, METHOD):
        names = module.split(".")
        if names[0] != "fudlr" or len(names) < 2 or names[1] not in LEVELS:
            continue
        other = names[1]
        if other != own and LEVELS[other] >= LEVELS[own] and LEVELS[own] > 1:
            wrong.append(
                f"line {line}: {own} (level {LEVELS[own]}) imports {other} (level {LEVELS[other]})"
            )
        elif LEVELS[other] > LEVELS[own]:
            wrong.append(f"line {line}: {own} imports {other} above it")
    return wrong


def test_the_table_is_read():
    assert LEVELS["cli"] > LEVELS["debias"] > LEVELS["influence"] > LEVELS["data"]
    assert LEVELS["metrics"] == LEVELS["recommenders"]


def test_every_module_stands_in_the_table():
    missing = sorted({part(path) for path in SOURCES} - set(LEVELS))
    assert not missing, f"add to the table of docs/architecture.md: {', '.join(missing)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(METHOD)))
def test_imports_run_downwards(path: Path):
    assert part(path) in LEVELS, "not in the table of docs/architecture.md"
    assert not offences(path), "\n".join(offences(path))


def test_what_works_between_processes_waits_until_there_are_several():
    """One process imports none of it; what transformers does is its own."""
    trees = {path.name: ast.parse(path.read_text(encoding="utf-8")).body for path in SOURCES}
    early = {
        name
        for name, body in trees.items()
        for node in body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and "torch.distributed" in ast.unparse(node)
    }
    assert not early


@pytest.mark.parametrize("path", sorted(ENGINE.rglob("*.py")), ids=lambda path: path.name)
def test_the_engine_knows_nothing_of_the_method_nor_of_peft(path: Path):
    roots = {module.split(".")[0] for _, module in imports(path, ENGINE)}
    assert not roots & {"fudlr", "peft", "transformers"}
    inner = {module.split(".")[1] for _, module in imports(path, ENGINE) if "fudlr_ext." in module}
    if path.parent.name == "ops":
        assert "engine" not in inner


def test_an_upward_import_would_be_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "METHOD", tmp_path / "fudlr")
    wrong = tmp_path / "fudlr" / "gradients" / "bad.py"
    wrong.parent.mkdir(parents=True)
    for line in (
        "from fudlr.influence.scores import influence",
        "from fudlr import influence",
        "import fudlr.debias",
        "from ..pipeline import request",
        "from fudlr.influence.curvature import CURVATURES",
        "def late():\n    from fudlr.cli import main",
    ):
        wrong.write_text(line)
        assert offences(wrong), line
    for line in (
        "from fudlr.common.errors import UsageError",
        "from fudlr.lora import load",
    ):
        wrong.write_text(line)
        assert not offences(wrong), line
