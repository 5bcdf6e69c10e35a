"""A release's files say one version and one range of Pythons and torches; the sdist has all."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
from importlib import import_module
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from fudlr_ext._library import OLDEST

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))


def test_the_latest_release_has_one_version_and_date():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    notes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.findall(r"^## \[(\d\S*)\] - (\d{4}-\d\d-\d\d)$", notes, re.M)[0]
    assert version == cited["version"] == PROJECT["version"]
    assert date == str(cited["date-released"])


def test_the_workflow_runs_ci_under_every_python_that_is_promised():
    named = "Programming Language :: Python :: "
    promised = [x.removeprefix(named) for x in PROJECT["classifiers"] if x.startswith(named)]
    job = WORKFLOW["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == promised
    assert {"run": "bash .ci/run"} in job["steps"]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert promised[0] == oldest
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'ABI = "cp{oldest.replace(".", "")}"' in setup
    assert f"USE_SABI {oldest}" in (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


def test_the_oldest_torch_is_the_one_that_is_tested(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    (torch,) = (x for x in map(Requirement, PROJECT["dependencies"]) if x.name == "torch")
    assert str(torch.specifier) == f">={OLDEST[0]}.{OLDEST[1]}"
    assert import_module("compat").TORCH[0].startswith(f"{OLDEST[0]}.{OLDEST[1]}.")


def test_the_sdist_has_every_file_that_is_compiled_or_installed(tmp_path):
    listed = ["git", "ls-files", "csrc", "python", "fudlr_ext", "CMakeLists.txt", "setup.py"]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    build = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path)]
    build += ["sdist", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    assert set(tracked.split()) <= held
