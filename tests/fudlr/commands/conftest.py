"""The whole command in this process, `main` included, and a run that several files look at."""

import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
from fudlr import RunConfig, cli, train_run
from fudlr.cli.boundary import DEBUG
from fudlr.config import merge

sys.path.insert(0, str(Path(__file__).parent))
from written import SMALL


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def fudlr(capsys, monkeypatch):
    """fudlr(*arguments): exit code, stdout and stderr; what is no error in words is raised."""
    monkeypatch.setenv("FUDLR_QUIET", "1")
    monkeypatch.setenv(DEBUG, "0")
    monkeypatch.setenv("MPLBACKEND", "agg")  # as the command sets it, taken back after the test
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def call(*arguments) -> Done:
        monkeypatch.setattr(sys, "argv", ["fudlr", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Done(ended.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def done(fudlr):
    """done(*arguments): the same where the command must succeed."""

    def call(*arguments) -> Done:
        found = fudlr(*arguments)
        assert found.code == 0, found.err
        return found

    return call


@pytest.fixture(scope="session")
def small_run(once) -> Path:
    """A trained run on disk; tests look at it, and none changes it."""
    return once("commands", lambda folder: train_run(merge(RunConfig(), SMALL), folder))


@pytest.fixture(scope="session")
def folders(once) -> Path:
    """A run of titles on written data, and a result of it."""
    from test_export import make_folders

    return once("export", make_folders)
