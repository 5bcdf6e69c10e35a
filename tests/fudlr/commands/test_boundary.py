"""Errors that nobody raised on purpose become words; nothing of the data's steers the terminal."""

import errno
import json
import os
import signal
import subprocess
import sys
import warnings
from concurrent.futures.process import BrokenProcessPool

import polars as pl
import pytest
import torch
from fudlr.cli import boundary
from fudlr.common import terminal
from fudlr.data import DataWarning
from safetensors import safe_open

MAIN = "import sys; from fudlr.cli import main; sys.argv[0] = 'fudlr'; main()"


def written(path, read):
    path.write_text("no such form")
    read(path)


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
    "parquet": (lambda p: written(p / "x.parquet", pl.read_parquet), "a file is damaged"),
    "safetensors": (
        lambda p: written(p / "x.safetensors", lambda path: safe_open(path, "pt")),
        "a file is damaged",
    ),
    "json": (lambda _: json.loads("{"), "a file is damaged"),
    "memory": (lambda _: torch.empty(2**60), "memory does not suffice"),
    "python's memory": (raising(MemoryError()), "memory does not suffice"),
    "killed worker": (raising(BrokenProcessPool("x")), "a worker process was killed"),
    "surrogates": (lambda p: (p / "t").write_text("\ud800", encoding="utf-8"), "no valid Unicode"),
    "anything else": (raising(ZeroDivisionError("by zero")), "(ZeroDivisionError: by zero)"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_error_becomes_a_line(fudlr, name, tmp_path, monkeypatch):
    act, words = CASES[name]
    monkeypatch.setattr("fudlr.output.push.push_adapter", lambda *_, **__: act(tmp_path))
    found = fudlr("push", tmp_path, "name")
    assert found.code == 1
    assert found.err.startswith("error: `fudlr push` was to run: ")
    assert words in found.err
    assert found.err.count("\n") == 1
    with pytest.raises(Exception) as bare:  # noqa: PT011  (as it is, with --debug)
        fudlr("--debug", "push", tmp_path, "name")
    assert "was to run" not in str(bare.value)


def test_names_of_files_reach_the_terminal_as_escapes(fudlr, tmp_path):
    folder = tmp_path / "re\x1b[31msult\x07"
    folder.mkdir()
    for name, content in (("summary.json", "{}"), ("mask.parquet", "no parquet")):
        (folder / name).write_text(content)
    found = fudlr("export", folder, "--out", tmp_path / "x.jsonl")
    assert found.code == 1
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    assert "\x1b" not in found.err
    assert r"re\x1b[31msult\x07" in found.err


def test_version_and_help(fudlr):
    import fudlr as package

    assert fudlr("--version").out == f"fudlr {package.__version__}\n"
    assert package.__version__[0].isdigit()
    for arguments in (["-h"], ["train", "-h"], ["data", "check", "-h"]):
        assert "Usage" in fudlr(*arguments).out
    assert "report\n            before and after.\n" in fudlr("--help").out  # whole, not cut


@pytest.mark.parametrize("arguments", [["options"], ["--help"], ["--version"]])
def test_output_that_cannot_be_written_is_said(arguments):
    command = [sys.executable, "-c", MAIN, *arguments]
    with open("/dev/full", "w") as out:
        found = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr.startswith("error: ")
    assert "the disk is full" in found.stderr
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("nohup", 0)]
)
def test_signals_let_a_command_clean_up(name, code, tmp_path):
    work = f"""
import time
from pathlib import Path
import fudlr.config
from fudlr.common.files import atomic_folder

def work():
    with atomic_folder(Path({str(tmp_path / "out")!r}), "result"):
        print("begun", flush=True)
        time.sleep(2 if {name == "nohup"} else 60)
    return {{}}

fudlr.config.describe_fields = lambda: work() or {{"a.b": dict(default=1, allowed="", help="")}}
"""
    command = [sys.executable, "-c", work + MAIN, "options"]
    command = ["nohup", *command] if name == "nohup" else command
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True, **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(getattr(signal, "SIGHUP" if name == "nohup" else name))
        said = process.communicate()[1]
    assert process.returncode == code, said
    assert said.endswith("" if name == "nohup" else "finished results are kept\n")
    assert [each.name for each in tmp_path.iterdir()] == (["out"] if name == "nohup" else [])


def test_labels_reach_the_terminal_as_escapes(capsys):
    terminal.console().print(terminal.table(["group"], [["\x1b]0;title \u202egnp.exe [bold]"]]))
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


def test_a_command_is_silent_about_what_others_say(small_run):
    """A process of its own, loading transformers and peft: no bars, no FutureWarning, no path."""
    command = [sys.executable, "-c", MAIN, "evaluate", str(small_run)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    assert "arp" in json.loads(found.stdout)


def test_a_backend_of_matplotlib_that_is_not_there_is_no_matter(tmp_path):
    command = [sys.executable, "-c", MAIN, "debias", str(tmp_path), "--out", str(tmp_path / "out")]
    env = {**os.environ, "MPLBACKEND": "not-there"}
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert found.stderr.startswith(f"error: the run in {tmp_path} was to be loaded")
