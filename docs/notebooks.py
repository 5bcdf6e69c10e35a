"""Runs docs/notebooks, each notebook in an empty folder; `make notebooks` keeps what they print."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "notebooks"
SECONDS = 120  # for the slowest cell


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook in `path` as a fresh run leaves it; a cell that fails raises its error."""
    notebook = nbformat.read(path, as_version=4)
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `!fudlr` is this one
    with TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=SECONDS, resources=where, record_timing=False)
        client.execute(env={**os.environ, "PATH": here})
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = printed(cell.outputs)
    return notebook


def printed(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """One text without colours; what went to stderr are progress bars."""
    said = "".join(each.text for each in outputs if each.get("name") == "stdout")
    text = re.sub(r"\x1b\[[0-9;]*m|\r", "", said)
    return [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(path)
