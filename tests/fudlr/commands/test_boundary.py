"""Errors that nobody raised on purpose become words; nothing of the data's steers the terminal."""

import errno
import json
import os
import subprocess
import sys
import warnings
from concurrent.futures.process import BrokenProcessPool

import polars as pl
import pytest
import torch
from fudlr import cli
from fudlr.cli import boundary
from fudlr.common import terminal
from fudlr.common.errors import FudlrError
from fudlr.data import DataWarning
from rich.table import Table
from rich.text import Text
from safetensors import safe_open
from typer.testing import CliRunner

MAIN = "import sys; from fudlr.cli import main; sys.argv[0] = 'fudlr'; main()"


def polars_error(tmp_path):
    (tmp_path / "x.parquet").write_text("no parquet")
    pl.read_parquet(tmp_path / "x.parquet")


def safetensors_error(tmp_path):
    (tmp_path / "x.safetensors").write_text("no tensors")
    safe_open(tmp_path / "x.safetensors", "pt")


def memory_error(tmp_path):
    torch.empty(2**60)


def raising(error):
    def act(tmp_path):
        raise error

    return act


CASES = {
    "disk full": (raising(OSError(errno.ENOSPC, "x", "/data/out")), "the disk is full: /data/out"),
    "rust's disk full": (raising(ValueError("I/O error (os error 28)")), "the disk is full"),
    "read-only": (raising(OSError(errno.EROFS, "x")), "the file system is read-only"),
    "no permission": (lambda p: (p / "f").write_text("") or os.open(p / "f" / "g", 0), "no folder"),
    "missing": (lambda p: (p / "none").read_text(), "there is no such file or folder"),
    "odd number": (raising(OSError(errno.ETXTBSY, "Text file busy")), "Text file busy"),
    "parquet": (polars_error, "a file is damaged"),
    "safetensors": (safetensors_error, "a file is damaged"),
    "json": (lambda _: json.loads("{"), "a file is damaged"),
    "memory": (memory_error, "memory does not suffice"),
    "python's memory": (raising(MemoryError()), "memory does not suffice"),
    "killed worker": (raising(BrokenProcessPool("x")), "a worker process was killed"),
    "surrogates": (lambda p: (p / "t").write_text("\ud800", encoding="utf-8"), "no valid Unicode"),
    "anything else": (raising(ZeroDivisionError("by zero")), "(ZeroDivisionError: by zero)"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_error_becomes_words(name, tmp_path, monkeypatch):
    act, words = CASES[name]
    monkeypatch.delenv(boundary.DEBUG, raising=False)
    monkeypatch.setattr("fudlr.output.push.push_adapter", lambda *_, **__: act(tmp_path))
    error = CliRunner().invoke(cli.app, ["push", str(tmp_path), "name"]).exception
    assert isinstance(error, FudlrError), repr(error)
    assert words in str(error)
    assert "`fudlr push` was to run" in str(error)
    assert "\n" not in str(error)
    monkeypatch.setenv(boundary.DEBUG, "1")
    bare = CliRunner().invoke(cli.app, ["push", str(tmp_path), "name"]).exception
    assert not isinstance(bare, FudlrError), "with --debug an error stays as it is"


def fudlr(*arguments):
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_whole_command_ends_in_one_line(tmp_path):
    folder = tmp_path / "re\x1b[31msult\x07"
    folder.mkdir()
    for name, content in (("summary.json", "{}"), ("mask.parquet", "no parquet")):
        (folder / name).write_text(content)
    done = fudlr("export", folder, "--out", tmp_path / "x.jsonl")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr.replace("\x1b[31merror", "")
    assert r"re\x1b[31msult\x07" in done.stderr.replace("\n", "")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" in fudlr("--debug", "export", folder, "--out", tmp_path / "x").stderr


def test_version_and_help():
    import fudlr as package

    assert CliRunner().invoke(cli.app, ["--version"]).output == f"fudlr {package.__version__}\n"
    assert package.__version__[0].isdigit()
    for arguments in (["-h"], ["train", "-h"], ["data", "check", "-h"]):
        assert "Usage" in CliRunner().invoke(cli.app, arguments).output


def test_labels_reach_the_terminal_as_escapes(capsys):
    table = Table()
    table.add_column("group")
    table.add_row(Text("\x1b]0;title \u202egnp.exe [bold]"))
    terminal.console().print(table)
    terminal.say("warning: a\x9b31mlabel\nerror: forged [red]")
    found = capsys.readouterr()
    assert r"\x1b]0;title \u202egnp.exe [bold]" in found.out
    assert found.err == "warning: a\\x9b31mlabel\\nerror: forged [red]\n"


def test_our_warnings_are_a_line_and_others_are_kept_out(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", boundary._show)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("3 rows left out", DataWarning, stacklevel=1)
        warnings.warn("is deprecated", FutureWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: 3 rows left out\n"


def test_a_command_is_silent_about_what_others_say(tmp_path):
    """Loading a run with transformers and peft: no bars, no FutureWarning, no path."""
    base = [f"--set={each}" for each in (
        "model.hidden=16", "model.heads=2", "model.kv_heads=1", "model.pretrain_epochs=0",
        "train.epochs=1", "lora.rank=2", "record.epochs=none")]  # fmt: skip
    done = fudlr("train", "--data", "synthetic", "--out", tmp_path / "run", *base)
    assert done.returncode == 0, done.stderr
    done = fudlr("evaluate", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "arp" in json.loads(done.stdout)
