"""Result files, and rows of Markdown tables."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
