"""The pages of docs/ that are made from result files say what the files say."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "benchmarks/tables", "--check"]


def test_the_pages_are_what_the_result_files_give():
    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_result_names_the_script_that_made_it():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        script = record["command"].split()[1]
        assert (ROOT / script).is_file(), f"{path.name} was made by {script}, which is not there"
