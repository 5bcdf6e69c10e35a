"""All options as a page of Markdown: `python -m fudlr.config > docs/options.md`.

Names, values and defaults are the configuration's; descriptions are its fields' docstrings.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

from fudlr.config.run import AFTER_TRAINING, RunConfig, describe_fields

HEAD = """# Options

Made by `python -m fudlr.config`; do not edit. Set an option with `--set section.name=value`, or in
a YAML file given as `--config`, with one block for each section. Those marked * can be set for a
run that is trained already. `fudlr options` prints the same.
"""


def page() -> str:
    """The whole page."""
    sections: dict[str, list[str]] = {}
    for dotted, about in describe_fields().items():
        section = dotted.rpartition(".")[0]
        if section:
            late = {dotted, section} & set(AFTER_TRAINING)
            cells = (f"`{dotted}`{'*' if late else ''}", about["allowed"],
                     f"`{_shown(about['default'])}`", about["help"])  # fmt: skip
            row = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
            sections.setdefault(section, []).append(row)
    parts = [HEAD]
    for section, rows in sections.items():
        summary = inspect.getdoc(RunConfig.model_fields[section].annotation) or ""
        table = ["| option | values | default | |", "|---|---|---|---|", *rows]
        parts.append(f"## {section}\n\n{summary}\n\n" + "\n".join(table) + "\n")
    return "\n".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None or value == {} else str(value)


if __name__ == "__main__":
    sys.stdout.write(page())
