"""All options as a page of Markdown: `python -m fudlr.config > docs/options.md`.

Names, types and defaults are the configuration's; descriptions are its fields' docstrings.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin

from fudlr.config.run import AFTER_TRAINING, RunConfig
from fudlr.config.sections import Record

HEAD = """# Options

Made by `python -m fudlr.config`; do not edit. Set an option with `--set section.name=value`, or in
a YAML file given as `--config`, with one block for each section. Those marked * can be set for a
run that is trained already.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for section, field in RunConfig.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Record):
            rows = [_row(section, name, kind) for name in kind.model_fields]
            about = (inspect.getdoc(kind) or "").strip()
            table = ["| option | values | default | |", "|---|---|---|---|", *rows]
            parts.append(f"## {section}\n\n{about}\n\n" + "\n".join(table) + "\n")
    return "\n".join(parts)


def _row(section: str, name: str, kind: type[Record]) -> str:
    field = kind.model_fields[name]
    late = f"{section}.{name}" in AFTER_TRAINING or section in AFTER_TRAINING
    values = _type(field.annotation)
    cells = (f"`{section}.{name}`{'*' if late else ''}", values, f"`{_shown(field.default)}`",
             _docs(kind).get(name, ""))  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _docs(kind: type) -> dict[str, str]:
    """Docstrings of a class's fields: the string that stands after each."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[field.target.id] = re.sub(r"\s+", " ", str(after.value.value))
    return found


def _type(kind: Any) -> str:
    """A field's values in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin in (Union, types.UnionType):
        return ", ".join("none" if each is type(None) else _type(each) for each in inner)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return "names by name"
    plain = {int: "integer", float: "number", str: "text", bool: "true, false"}
    return plain.get(kind, str(kind))


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) or "none" if isinstance(value, (tuple, dict)) else str(value)


if __name__ == "__main__":
    sys.stdout.write(page())
